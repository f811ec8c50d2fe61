"""How much memory a run will take, before it starts: from headers of its files and the settings (free of torch).

Weights, gradients and optimiser state are counted exactly. Activations are estimated: a layer that maps `in` to `out`
numbers keeps about `in + out` of them a token for the backward pass. The CUDA context, fragments and models that score
come on top. `engine/probing.py` measures, once a GPU holds the model, what is estimated here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.model_size import ModelSize, is_adapted
from engine.settings import RunSettings
from engine.tensor_headers import TensorShape
from engine.work import num_passes

GIB = 2**30
# Numbers kept for the backward pass, over the inputs and outputs of the blocks' layers, as measured on small models of
# every family: where a LoRA of the blocks is trained, and where more is. Within a factor of 2.5, either way.
_KEPT_BY_ADAPTER, _KEPT_BY_MORE = 1.2, 1.5
# Of a GPU's memory: the rest is the CUDA context's, and lost to fragments.
_USABLE_SHARE = 0.85
_BLOCK = re.compile(r"^(.*?\.\d+)\.")
_MODULATION = re.compile(r"norm|mod\b|_mod\.|modulation|adaLN")
_TEXT_STREAM = re.compile(r"\.add_[qkv]_proj|to_add_out|ff_context|txt_mlp|norm_added|txt_mod|norm1_context")


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
    adapted = [shape for name, shape in size.transformer.items() if is_adapted(name, shape, settings)]
    return settings.tuning.rank * sum(sum(shape.shape) for shape in adapted)


def activation_bytes(size: ModelSize, settings: RunSettings) -> int:
    """Bytes kept for the backward pass of one image; with checkpointing, every block's input and one whole block."""
    image, text = size.image_tokens(settings), size.text_tokens
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
    scale = 1.0 if settings.method == "nft" else settings.sampling.guidance_scale
    passes = num_passes(settings, scale, size.takes_guidance)
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
