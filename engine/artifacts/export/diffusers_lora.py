"""A LoRA as diffusers itself writes it: ``pytorch_lora_weights.safetensors``, for `load_lora_weights`.

Keys are ``transformer.<module>.lora_A.weight`` and ``….lora_B.weight``. No key holds alpha: diffusers reads it in the
header's ``lora_adapter_metadata``, and programs that do not (ComfyUI, InvokeAI, diffusers of old) take it for the
rank. So the scale alpha/rank is in B, and the header says that alpha is the rank.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.artifacts.export.base import BaseModelRelation, Held
from engine.artifacts.export.header import write_with_header
from engine.artifacts.export.lora_layers import lora_layers, scaled_layers
from engine.artifacts.export.model_card import drawing_code
from engine.artifacts.export.source import ExportSource
from engine.models.pipelines import open_pipeline
from engine.models.plain_calls import load_lora, lora_code

FILE_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."


@dataclass(frozen=True)
class DiffusersLora:
    """The adapter alone, for use with the base model."""

    relation: BaseModelRelation = "adapter"
    holds: Held = "scaled lora"
    single_file: str | None = FILE_NAME
    checked_by: str = "plain diffusers loads it and"

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the adapter into an empty folder."""
        tensors = {}
        for name, layer in scaled_layers(source).items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.down
            tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.up
        metadata = {"lora_adapter_metadata": json.dumps(adapter_metadata(source), sort_keys=True)}
        write_with_header(source, folder / FILE_NAME, tensors, "lora", more=metadata)

    def load(self, source: ExportSource, folder: Path) -> Any:
        """The base pipeline with the adapter."""
        pipeline = open_pipeline(source.base, torch.float32)
        load_lora(pipeline, folder, FILE_NAME)
        return pipeline

    def weight_difference(self, source: ExportSource, folder: Path) -> float | None:
        """None: diffusers reads it."""
        return None

    def how_to_use(self, source: ExportSource) -> str:
        """Python for the model card."""
        return drawing_code(
            source,
            "import torch\n"
            "from diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{source.base_path}", dtype=torch.float32)  # the base model\n'
            f"{lora_code(source.settings.model.name, FILE_NAME)}",
        )


def adapter_metadata(source: ExportSource) -> dict[str, Any]:
    """LoraConfig's arguments that rebuild the adapter, with diffusers' prefix."""
    tuning = source.settings.tuning
    modules = sorted(lora_layers(source))
    config = {"r": tuning.rank, "lora_alpha": tuning.rank, "target_modules": modules, "bias": "none"}
    return {PREFIX + name: value for name, value in config.items()}
