"""How large a model is, from a pipeline folder's headers and configurations alone (free of torch).

What a run takes of memory (engine/memory_estimate.py) and how long (engine/time_estimate.py) follow from this and the
settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.catalogue import MODEL_INFO
from engine.pipeline_folders import (
    check_pipeline_folder,
    part_names,
    pixels_a_latent,
    read_index,
    read_json,
    tensor_shapes,
    weight_files,
)
from engine.settings import RunSettings
from engine.tensor_headers import TensorShape

_BUFFER = "pos_embed.pos_embed"  # in the file of a Stable Diffusion 3, but no weight
# What a LoRA of the blocks adapts, over all families; tests hold it equal to what the adapters say.
_ADAPTED = re.compile(
    r"(?:^|\.)(?:attn|attn2|attention)\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj|to_out)$"
    r"|(?:^|\.)attn1\.(?:to_[qkv]|to_out\.0)$"
    r"|(?:^|\.)ff(?:_context)?\.(?:net\.0\.proj|net\.2|linear_in|linear_out)$"
    r"|(?:^|\.)(?:img|txt)_mlp\.net\.(?:0\.proj|2)$"
    r"|(?:^|\.)feed_forward\.(?:linear_[123]|w[123])$"
)
# Transformers that say in their configuration how many latents a side they draw; others draw what the catalogue says.
_WITH_OWN_SIDE = ("SD3", "Sana")


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a pipeline's parts.

    Attributes:
        transformer: the shapes of its weights by name.
        encoders, autoencoder: weights of all text encoders, and of the autoencoder.
        pixels_a_token: pixels a side of what the transformer takes as one token.
        text_tokens: of a long prompt.
        image_size: pixels a side of an image, where the settings say none.
        head_width: channels of an attention head.
        takes_guidance: the guidance scale is an input, so that a guided velocity takes one forward.
        decoder: the shapes of the autoencoder's weights by name, where they are known.
    """

    transformer: Mapping[str, TensorShape]
    encoders: int
    autoencoder: int
    pixels_a_token: int
    text_tokens: int
    image_size: int
    head_width: int
    takes_guidance: bool = False
    decoder: Mapping[str, TensorShape] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, TensorShape]:
        """Those of the transformer by name, without tables that are in its file."""
        return {name: shape for name, shape in self.transformer.items() if name != _BUFFER}

    @property
    def num_weights(self) -> int:
        """Of the transformer."""
        return sum(shape.num_elements for shape in self.weights.values())

    def side(self, settings: RunSettings) -> int:
        """Pixels a side of the run's images."""
        return settings.model.resolution or self.image_size

    def image_tokens(self, settings: RunSettings) -> int:
        """Tokens that an image of the run is to the transformer."""
        return (self.side(settings) // self.pixels_a_token) ** 2


def read_size(folder: Path, settings: RunSettings) -> ModelSize:
    """The sizes of a pipeline folder, from its headers alone. Raises ValueError if it is not whole or another's."""
    name = settings.model.name
    check_pipeline_folder(folder, name)
    parts = {part: folder / part for part in part_names(read_index(folder))}
    shapes = {part: tensor_shapes(weight_files(path)) for part, path in parts.items()}
    sums = {part: sum(shape.num_elements for shape in tensors.values()) for part, tensors in shapes.items()}
    vae, transformer = (read_json(folder / part / "config.json") for part in ("vae", "transformer"))
    pixels, own = pixels_a_latent(vae), str(transformer.get("_class_name")).startswith(_WITH_OWN_SIDE)
    return ModelSize(
        transformer=shapes["transformer"],
        encoders=sum(count for part, count in sums.items() if part.startswith("text_encoder")),
        autoencoder=sums.get("vae", 0),
        pixels_a_token=pixels * _latents_a_token(transformer),
        text_tokens=MODEL_INFO[name].text_tokens,
        image_size=pixels * int(transformer["sample_size"]) if own else MODEL_INFO[name].image_size,
        head_width=int(transformer.get("attention_head_dim") or 0),
        takes_guidance=bool(transformer.get("guidance_embeds")),
        decoder=shapes.get("vae", {}),
    )


def _latents_a_token(transformer: Mapping[str, Any]) -> int:
    """Latents a side that are packed into one token."""
    if str(transformer.get("_class_name")).startswith(("Flux", "Chroma", "QwenImage")):
        return 2
    sizes = transformer.get("all_patch_size") or transformer.get("patch_size") or 1
    return int(sizes[0] if isinstance(sizes, list) else sizes)


def is_adapted(name: str, shape: TensorShape, settings: RunSettings) -> bool:
    """Whether the run's LoRA adapts the layer of a weight of the transformer."""
    if settings.tuning.method != "lora" or not name.endswith(".weight") or len(shape.shape) != 2:
        return False
    return settings.tuning.layers == "all" or bool(_ADAPTED.search(name.removesuffix(".weight")))
