"""How much memory a run will take, before it starts: from headers of its files and the settings (free of torch).

Weights, gradients and optimiser state are counted exactly. Activations are estimated: a layer that maps `in` to `out`
numbers keeps about `in + out` of them a token for the backward pass. The CUDA context, fragments and models that score
come on top. `engine/probing.py` measures, once a GPU holds the model, what is estimated here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.catalogue import MODEL_INFO
from engine.pipeline_folders import (
    check_pipeline_folder,
    part_names,
    read_index,
    read_json,
    tensor_shapes,
    weight_files,
)
from engine.settings import RunSettings
from engine.tensor_headers import TensorShape
from engine.work import num_passes

GIB = 2**30
# Numbers kept for the backward pass, over the inputs and outputs of the blocks' layers, as measured on small models of
# every family: where a LoRA of the blocks is trained, and where more is. Within a factor of 2.5, either way.
_KEPT_BY_ADAPTER, _KEPT_BY_MORE = 1.2, 1.5
# Of a GPU's memory: the rest is the CUDA context's, and lost to fragments.
_USABLE_SHARE = 0.85
_BUFFER = "pos_embed.pos_embed"  # in the file of a Stable Diffusion 3, but no weight
# What a LoRA of the blocks adapts, over all families; tests hold it equal to what the adapters say.
_ADAPTED = re.compile(
    r"(?:^|\.)(?:attn|attn2|attention)\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj|to_out)$"
    r"|(?:^|\.)attn1\.(?:to_[qkv]|to_out\.0)$"
    r"|(?:^|\.)ff(?:_context)?\.(?:net\.0\.proj|net\.2|linear_in|linear_out)$"
    r"|(?:^|\.)(?:img|txt)_mlp\.net\.(?:0\.proj|2)$"
    r"|(?:^|\.)feed_forward\.(?:linear_[123]|w[123])$"
)
_BLOCK = re.compile(r"^(.*?\.\d+)\.")
_MODULATION = re.compile(r"norm|mod\b|_mod\.|modulation|adaLN")
_TEXT_STREAM = re.compile(r"\.add_[qkv]_proj|to_add_out|ff_context|txt_mlp|norm_added|txt_mod|norm1_context")


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a pipeline's parts.

    Attributes:
        transformer: the shapes of its weights by name.
        encoders, autoencoder: weights of all text encoders, and of the autoencoder.
        pixels_a_token: pixels a side of what the transformer takes as one token.
        text_tokens: of a long prompt.
        takes_guidance: the guidance scale is an input, so that a guided velocity takes one forward.
    """

    transformer: Mapping[str, TensorShape]
    encoders: int
    autoencoder: int
    pixels_a_token: int
    text_tokens: int
    takes_guidance: bool = False

    @property
    def num_weights(self) -> int:
        """Of the transformer."""
        return sum(shape.num_elements for name, shape in self.transformer.items() if name != _BUFFER)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a GPU's memory, by what takes them.

    Attributes:
        weights: the transformer's; trained ones are float32.
        adapter, gradients, optimiser: the LoRA; of the trained weights; AdamW's two moments of each.
        copies: the base model that updates are compared with, and trained weights in the precision of the arithmetic.
        activations: of one image in training.
        encoders, autoencoder: weights. Encoders leave once the prompts are encoded, with `compute.embedding_cache`.
        start, training: the most at once while prompts are encoded, and in training.
    """

    weights: int
    adapter: int
    gradients: int
    optimiser: int
    copies: int
    activations: int
    encoders: int
    autoencoder: int
    start: int
    training: int

    @property
    def peak(self) -> int:
        """The most at once."""
        return max(self.start, self.training)


def read_size(folder: Path, settings: RunSettings) -> ModelSize:
    """The sizes of a pipeline folder, from its headers alone. Raises ValueError if it is not whole or another's."""
    name = settings.model.name
    check_pipeline_folder(folder, name)
    parts = {part: folder / part for part in part_names(read_index(folder))}
    shapes = {part: tensor_shapes(weight_files(path)) for part, path in parts.items()}
    sums = {part: sum(shape.num_elements for shape in tensors.values()) for part, tensors in shapes.items()}
    return ModelSize(
        transformer=shapes["transformer"],
        encoders=sum(count for part, count in sums.items() if part.startswith("text_encoder")),
        autoencoder=sums.get("vae", 0),
        pixels_a_token=_pixels_a_token(folder),
        text_tokens=MODEL_INFO[name].text_tokens,
        takes_guidance=bool(read_json(folder / "transformer" / "config.json").get("guidance_embeds")),
    )


def _pixels_a_token(folder: Path) -> int:
    """Pixels a side of a token: those of a latent, by as many latents as are packed into one."""
    vae, transformer = read_json(folder / "vae" / "config.json"), read_json(folder / "transformer" / "config.json")
    lists = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
    widths = next((vae[key] for key in lists if key in vae), [0] * 4)
    pixels = int(vae.get("spatial_compression_ratio") or 2 ** (len(widths) - 1))
    kind = str(transformer.get("_class_name"))
    packs = kind.startswith(("Flux", "Chroma", "QwenImage"))
    sizes = transformer.get("all_patch_size") or transformer.get("patch_size") or 1
    size = int(sizes[0] if isinstance(sizes, list) else sizes)
    return pixels * (2 if packs else size)


def estimate_memory(size: ModelSize, settings: RunSettings) -> MemoryEstimate:
    """What a run with these settings holds, with one image at a time in training."""
    tuning, half = settings.tuning, settings.model.precision == "bfloat16"
    frozen = 2 if half and settings.model.name != "builtin" else 4
    full = tuning.method == "full"
    trained = size.num_weights if full else adapter_weights(size, settings)
    weights = size.num_weights * (4 if full else frozen)
    adapter = 0 if full else 4 * trained
    kept = 4 * trained if full and _keeps_base(settings) else 0
    copies = kept + (2 * trained if half else 0)
    encoders, autoencoder = frozen * size.encoders, 4 * size.autoencoder
    gradients, optimiser = 4 * trained, 8 * trained
    activations = activation_bytes(size, settings)
    stays = 0 if settings.compute.embedding_cache else encoders
    return MemoryEstimate(
        weights=weights, adapter=adapter, gradients=gradients, optimiser=optimiser, copies=copies,
        activations=activations, encoders=encoders, autoencoder=autoencoder,
        start=frozen * size.num_weights + encoders + autoencoder,
        training=weights + adapter + gradients + optimiser + copies + activations + autoencoder + stays,
    )  # fmt: skip


def adapter_weights(size: ModelSize, settings: RunSettings) -> int:
    """Weights of the run's LoRA: rank · (in + out) of every layer that it adapts."""
    everything = settings.tuning.layers == "all"
    return settings.tuning.rank * sum(
        sum(shape.shape) for name, shape in size.transformer.items()
        if name.endswith(".weight") and len(shape.shape) == 2
        and (everything or _ADAPTED.search(name.removesuffix(".weight")))
    )  # fmt: skip


def activation_bytes(size: ModelSize, settings: RunSettings) -> int:
    """Bytes kept for the backward pass of one image; with checkpointing, every block's input and one whole block."""
    side = (settings.model.resolution or MODEL_INFO[settings.model.name].image_size) // size.pixels_a_token
    image, text = side * side, size.text_tokens
    blocks: dict[str, list[tuple[str, TensorShape]]] = {}
    for name, shape in size.transformer.items():
        found = _BLOCK.match(name)
        if found and name.endswith(".weight") and len(shape.shape) in (2, 4) and not _MODULATION.search(name):
            blocks.setdefault(found[1], []).append((name, shape))
    each = [_numbers_kept(layers, image, text) for layers in blocks.values()]
    kept = sum(each)
    if settings.tuning.gradient_checkpointing and each:
        widths = [min(min(shape.shape[:2]) for _, shape in layers) for layers in blocks.values()]
        kept = max(each) + (image + text) * sum(widths)
    once = settings.method == "nft" or size.takes_guidance
    passes = 1 if once else num_passes(settings, settings.sampling.guidance_scale)
    by_adapter = settings.tuning.method == "lora" and settings.tuning.layers == "blocks"
    share = _KEPT_BY_ADAPTER if by_adapter else _KEPT_BY_MORE
    return round(share * kept * passes * (2 if settings.model.precision == "bfloat16" else 4))


def _numbers_kept(layers: list[tuple[str, TensorShape]], image: int, text: int) -> int:
    """Inputs and outputs of a block's layers; in a block of two streams each sees its own tokens."""
    two_streams = any(_TEXT_STREAM.search(name) for name, _ in layers)
    return sum(
        sum(shape.shape[:2]) * ((text if _TEXT_STREAM.search(name) else image) if two_streams else image + text)
        for name, shape in layers
    )


def in_words(estimate: MemoryEstimate, settings: RunSettings, available: int | None = None) -> str:
    """The estimate in a sentence or two: what a run takes, and what to change where a GPU has fewer bytes."""
    text = (
        f"About {_size(estimate.peak)} of GPU memory with one image at a time: {_size(estimate.start)} while prompts "
        f"are encoded, {_size(estimate.training)} in training ({_size(estimate.weights)} weights, "
        f"{_size(estimate.adapter + estimate.gradients + estimate.optimiser + estimate.copies)} for what is trained, "
        f"{_size(estimate.activations)} activations); rewards that are models come on top."
    )
    if available is None or estimate.peak <= _USABLE_SHARE * available:
        return text
    return f"{text} That will hardly fit this GPU's {_size(available)}: {_remedy(estimate, settings)}."


def _remedy(estimate: MemoryEstimate, settings: RunSettings) -> str:
    """What to change, the least loss first."""
    if settings.model.precision == "float32" and settings.model.name != "builtin":
        return "set model.precision to bfloat16"
    if estimate.start > estimate.training:
        return "encoding the prompts takes most, so use a GPU with more memory"
    if not settings.tuning.gradient_checkpointing:
        return "set tuning.gradient_checkpointing to true"
    if settings.tuning.method == "full":
        return "set tuning.method to lora, or share the weights among several GPUs with compute.sharding"
    return "lower model.resolution, or use a GPU with more memory"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.0f} MiB"


def _keeps_base(settings: RunSettings) -> bool:
    return (settings.nft.base_weight if settings.method == "nft" else settings.grpo.kl_weight) > 0
