"""A LoRA in one safetensors file with published layer names: what ComfyUI's and kohya's formats have in common.

A layer has three tensors, down, up and ``.alpha``: their programs do not read the header, so the scale travels there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.artifacts.export.base import BaseModelRelation, Held
from engine.artifacts.export.header import write_with_header
from engine.artifacts.export.lora_reader import KeyStyle, add_to_pipeline, weight_difference
from engine.artifacts.export.native_names import NATIVE_NAMES, native_layers
from engine.artifacts.export.source import ExportSource


@dataclass(frozen=True)
class PublishedLora:
    """The adapter alone.

    Attributes:
        program: what reads it, in a sentence that refuses a family.
        families: the transformer classes that it loads.
        names: whose names they are, in the sentence about the check.
        keys: how they are spelt.
    """

    program: str
    families: Collection[str]
    names: str
    keys: KeyStyle
    single_file: str | None
    relation: BaseModelRelation = "adapter"
    holds: Held = "lora"

    @property
    def checked_by(self) -> str:
        """How it is read back."""
        return (
            f"its keys, mapped back by {self.names} published names, change every weight as the checkpoint does, "
            "and diffusers then"
        )

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the adapter into an empty folder. Raises ExportError for a family that the program does not load."""
        tensors = {}
        for name, layer in native_layers(source, self.program, self.families).items():
            key = self.keys.key(name)
            tensors[key + self.keys.down] = layer.down
            tensors[key + self.keys.up] = layer.up
            tensors[key + ".alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
        write_with_header(
            source, self.path(folder), tensors, "lora",
            implementation=NATIVE_NAMES[source.facts.class_name].implementation, more=self.header_texts(source),
        )  # fmt: skip

    def load(self, source: ExportSource, folder: Path) -> Any:
        """The base pipeline with the adapter, by the published key names."""
        return add_to_pipeline(source, self.path(folder), self.keys)

    def weight_difference(self, source: ExportSource, folder: Path) -> float | None:
        """How far its weights are from the checkpoint's."""
        return weight_difference(source, self.path(folder), self.keys)

    def header_texts(self, source: ExportSource) -> Mapping[str, str]:
        """What the header says besides what every export's does."""
        return {}

    def path(self, folder: Path) -> Path:
        """The file in the folder."""
        assert self.single_file is not None
        return folder / self.single_file
