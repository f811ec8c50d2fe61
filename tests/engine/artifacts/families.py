"""Sources of made-up LoRAs over every linear layer of each family's transformer, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from engine.artifacts.export.source import ExportSource
from engine.artifacts.export.transformer_facts import TransformerFacts
from engine.artifacts.manifest import Manifest
from engine.settings import RunSettings, TuningSettings

# Few blocks; the sizes that diffusers' own conversions take for granted are the published ones.
SMALL: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": {"num_layers": 2, "num_single_layers": 2, "guidance_embeds": True},
    "Flux2Transformer2DModel": {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2,
                                "attention_head_dim": 16, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4, 4)},
    "ChromaTransformer2DModel": {"num_layers": 2, "num_single_layers": 2},
    "SD3Transformer2DModel": {"num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 8,
                              "caption_projection_dim": 24, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
    "Lumina2Transformer2DModel": {"num_layers": 2, "num_refiner_layers": 2},
    "QwenImageTransformer2DModel": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
                                    "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)},
    "ZImageTransformer2DModel": {"n_layers": 2, "n_refiner_layers": 1, "dim": 32, "n_heads": 2, "n_kv_heads": 2,
                                 "cap_feat_dim": 24, "axes_dims": [4, 6, 6]},
    "HunyuanImageTransformer2DModel": {"num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1,
                                       "num_attention_heads": 2, "attention_head_dim": 8, "text_embed_dim": 24,
                                       "text_embed_2_dim": 12, "rope_axes_dim": (4, 4), "guidance_embeds": True,
                                       "use_meanflow": True},
    "SanaTransformer2DModel": {"num_layers": 1},
}  # fmt: skip
NUM_INPUTS = 8  # of every layer, so that the published sizes cost nothing


def family_facts(class_name: str, config: dict[str, Any] | None = None) -> TransformerFacts:
    """Facts of a family: with `config` as it is, or else the small one, its layers' inputs cut to NUM_INPUTS."""
    with torch.device("meta"):
        transformer = getattr(diffusers, class_name)(**(SMALL[class_name] if config is None else config))
    layers = {
        name: (module.out_features, NUM_INPUTS if config is None else module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return TransformerFacts(class_name, dict(transformer.config), layers)


def family_source(class_name: str, folder: Path, rank: int = 4, alpha: float = 7.0) -> ExportSource:
    """A checkpoint with a random LoRA of every layer of a small one, its scale not 1."""
    return lora_source(family_facts(class_name), folder, rank, alpha)


def lora_source(
    facts: TransformerFacts, folder: Path, rank: int, alpha: float, adapts: Callable[[str], bool] = lambda name: True
) -> ExportSource:
    """A checkpoint with a random LoRA of the layers that `adapts` names; multiples of 1/8, the same everywhere."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator) / 8

    weights = {
        f"{name}.{part}.weight": tensor
        for name, (rows, columns) in facts.layers.items()
        for part, tensor in (("lora_A", drawn(rank, columns)), ("lora_B", drawn(rows, rank)))
        if adapts(name)
    }
    settings = RunSettings(tuning=TuningSettings(rank=rank, alpha=alpha, layers="all"))
    manifest = Manifest(step=1, created=0.0, settings_digest=settings.digest(), versions={"torch": "0"}, files={})
    source = ExportSource(folder, settings, manifest, weights, False, folder, (), "CPU", "a model")
    source.__dict__["facts"] = facts  # what the folder's configuration would say
    return source


def weight_deltas(source: ExportSource) -> dict[str, Tensor]:
    """What the LoRA adds to each layer that it adapts, straight from the checkpoint's tensors."""
    tuning, weights = source.settings.tuning, source.weights
    return {
        name: (tuning.alpha / tuning.rank) * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
        for name in source.facts.layers
        if f"{name}.lora_B.weight" in weights
    }
