"""How much memory a run will take, before it starts: from headers of its files and the settings (free of torch).

Weights, gradients and optimiser state are counted exactly. Activations are estimated: a layer that maps `in` to `out`
numbers keeps about `in + out` of them a token for the backward pass, and an autoencoder's last layers, at full size,
hold a few times their channels a pixel. The CUDA context, fragments and models that score
come on top. `engine/probing.py` measures, once a GPU holds the model, what is estimated here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.model_size import ModelSize, is_adapted
from engine.settings import OptimiserName, RunSettings
from engine.tensor_headers import TensorShape
from engine.work import num_passes

# Numbers kept for the backward pass, over the inputs and outputs of the blocks' layers, as measured on small models of
# every family: where a LoRA of the blocks is trained, and where more is. Within a factor of 2.5, either way.
_KEPT_BY_ADAPTER, _KEPT_BY_MORE = 1.2, 1.5
# Numbers an autoencoder holds at once for a pixel, over its last layer's channels: in two dimensions, and as frames.
_HELD_BY_IMAGES, _HELD_BY_FRAMES = 6, 18
# A layer of a block that is a child of the transformer: what engine/models/quantisation.py rounds.
_ROUNDED = re.compile(r"^\w+\.\d+\.\w.*\.weight$")
_LEVELS_BYTES = 16 * 4  # of a 4-bit weight
_NF4_BLOCK, _OPTIMISER_BLOCK = 64, 256
# Smaller weights have their moments in 32 bits.
_SMALLEST_IN_8_BITS = 4096
_LAST_LAYER = re.compile(r"^decoder\.conv_out\.(?:conv\.)?weight$")
_BLOCK = re.compile(r"^(.*?\.\d+)\.")
_MODULATION = re.compile(r"norm|mod\b|_mod\.|modulation|adaLN")
_TEXT_STREAM = re.compile(r"\.add_[qkv]_proj|to_add_out|ff_context|txt_mlp|norm_added|txt_mod|norm1_context")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a GPU's memory, by what takes them.

    Attributes:
        weights: the transformer's; trained ones are float32, frozen ones of the blocks may be held in fewer bits.
        adapter, gradients, optimiser: the LoRA; of the trained weights; AdamW's two moments of each.
        copies: the base model that updates are compared with, and trained weights in the precision of the arithmetic.
        activations: of one image in training.
        encoders, autoencoder: weights. Encoders leave once the prompts are encoded, with `compute.embedding_cache`;
            both rest elsewhere while they do not work, with `compute.offload`.
        start, training, decoding: the most at once while prompts are encoded, in training, and while an image is
            decoded.
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
    decoding: int

    @property
    def peak(self) -> int:
        """The most at once."""
        return max(self.start, self.training, self.decoding)


def estimate_memory(size: ModelSize, settings: RunSettings) -> MemoryEstimate:
    """What a run with these settings holds, with one image at a time in training."""
    tuning, half, offload = settings.tuning, settings.model.precision == "bfloat16", settings.compute.offload
    frozen = 2 if half and settings.model.name != "builtin" else 4
    full = tuning.method == "full"
    trained = size.num_weights if full else adapter_weights(size, settings)
    held = frozen_bytes(size, settings, frozen)
    weights = 4 * trained if full else held
    adapter = 0 if full else 4 * trained
    kept = 4 * trained if full and _keeps_base(settings) else 0
    copies = kept + (2 * trained if half else 0)
    encoders, autoencoder = frozen * size.encoders, 4 * size.autoencoder
    gradients, optimiser = 4 * trained, moments_bytes(_trained_counts(size, settings), settings.optimiser.name)
    activations = activation_bytes(size, settings)
    idle = 0 if offload else autoencoder + (0 if settings.compute.embedding_cache else encoders)
    always = weights + adapter + optimiser + copies + idle
    return MemoryEstimate(
        weights=weights, adapter=adapter, gradients=gradients, optimiser=optimiser, copies=copies,
        activations=activations, encoders=encoders, autoencoder=autoencoder,
        # Offloaded, the transformer comes when the encoders are gone.
        start=max(held, encoders) if offload else held + encoders + autoencoder,
        training=always + gradients + activations,
        decoding=always + decoding_bytes(size, settings) + (autoencoder if offload else 0),
    )  # fmt: skip


def frozen_bytes(size: ModelSize, settings: RunSettings, each: int) -> int:
    """Bytes of the transformer's frozen weights, `each` bytes a weight where they are not held in fewer bits."""
    kind = settings.model.quantisation
    rounded = [
        shape for name, shape in size.transformer.items()
        if kind != "none" and _ROUNDED.match(name) and len(shape.shape) == 2
    ]  # fmt: skip
    whole = size.num_weights - sum(shape.num_elements for shape in rounded)
    if kind == "int8":
        return each * whole + sum(shape.num_elements + 4 * shape.shape[0] for shape in rounded)
    return each * whole + sum(
        -(-shape.num_elements // 2) + 4 * -(-shape.num_elements // _NF4_BLOCK) + _LEVELS_BYTES for shape in rounded
    )


def moments_bytes(counts: Sequence[int], optimiser: OptimiserName) -> int:
    """Bytes of AdamW's two moments of tensors with so many trained weights each."""
    if optimiser == "adamw":
        return 8 * sum(counts)
    small = sum(count for count in counts if count < _SMALLEST_IN_8_BITS)
    return 8 * small + sum(
        2 * (count + 4 * -(-count // _OPTIMISER_BLOCK)) for count in counts if count >= _SMALLEST_IN_8_BITS
    )


def _trained_counts(size: ModelSize, settings: RunSettings) -> list[int]:
    """Numbers in each trained tensor: all of the transformer's, or a LoRA's two a layer."""
    if settings.tuning.method == "full":
        return [shape.num_elements for shape in size.weights.values()]
    adapted = [shape for name, shape in size.transformer.items() if is_adapted(name, shape, settings)]
    return [settings.tuning.rank * side for shape in adapted for side in shape.shape]


def decoding_bytes(size: ModelSize, settings: RunSettings) -> int:
    """Bytes that an autoencoder holds besides its weights while it decodes an image, or a tile of it; 0 if unknown."""
    last = next((shape.shape for name, shape in size.decoder.items() if _LAST_LAYER.match(name)), None)
    if last is None:
        return 0
    colours, channels, *kernel = last
    side = size.side(settings)
    at_once = min(side, settings.model.vae_tile or side)
    held = _HELD_BY_FRAMES if len(kernel) == 3 else _HELD_BY_IMAGES
    return 4 * (held * channels * at_once**2 + colours * side**2)


def adapter_weights(size: ModelSize, settings: RunSettings) -> int:
    """Weights of the run's LoRA: rank · (in + out) of every layer that it adapts."""
    return sum(_trained_counts(size, settings))


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


def _keeps_base(settings: RunSettings) -> bool:
    return (settings.nft.base_weight if settings.method == "nft" else settings.grpo.kl_weight) > 0
