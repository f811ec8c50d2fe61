"""A LoRA for ComfyUI's own loader: ``diffusion_model.<layer>.lora_A.weight``, ``….lora_B.weight`` and ``….alpha``.

Layers have the published checkpoint's names (native_names.py), which ComfyUI maps whatever its version. It does not
read the header, so the scale travels as ``.alpha`` tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.artifacts.export.base import BaseModelRelation
from engine.artifacts.export.header import write_with_header
from engine.artifacts.export.lora_reader import COMFYUI_KEYS, add_to_pipeline, weight_difference
from engine.artifacts.export.native_names import native_layers, native_names
from engine.artifacts.export.source import ExportSource

PROGRAM = "ComfyUI"


@dataclass(frozen=True)
class ComfyUi:
    """The adapter alone, for ComfyUI's Load LoRA node."""

    relation: BaseModelRelation = "adapter"
    single_file: str | None = "comfyui_lora.safetensors"
    checked_by: str = (
        "its keys, mapped back by ComfyUI's published names, change every weight as the checkpoint does, "
        "and diffusers then"
    )

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the adapter into an empty folder. Raises ExportError for a family that ComfyUI does not load."""
        layers = native_layers(source, PROGRAM)
        tensors = {}
        for name, layer in layers.items():
            tensors[f"diffusion_model.{name}.lora_A.weight"] = layer.down
            tensors[f"diffusion_model.{name}.lora_B.weight"] = layer.up
            tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
        implementation = native_names(source.facts.class_name, PROGRAM).implementation
        write_with_header(source, self.path(folder), tensors, "lora", implementation=implementation)

    def load(self, source: ExportSource, folder: Path) -> Any:
        """The base pipeline with the adapter, by the published key names."""
        return add_to_pipeline(source, self.path(folder), COMFYUI_KEYS)

    def weight_difference(self, source: ExportSource, folder: Path) -> float | None:
        """How far its weights are from the checkpoint's."""
        return weight_difference(source, self.path(folder), COMFYUI_KEYS)

    def how_to_use(self, source: ExportSource) -> str:
        """For the model card."""
        return (
            f"Put `{self.single_file}` into ComfyUI's `models/loras`, and load it with the node *Load LoRA* (its "
            "strength for the model at 1) between the base model and the sampler."
        )

    def path(self, folder: Path) -> Path:
        """The file in the folder."""
        assert self.single_file is not None
        return folder / self.single_file
