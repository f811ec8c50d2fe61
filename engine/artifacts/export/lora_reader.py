"""ComfyUI's and kohya's LoRA files read back, as their programs read them: names, rows, and alpha over rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.artifacts.export.lora_layers import lora_layers
from engine.artifacts.export.published_places import place_of
from engine.artifacts.export.source import ExportError, ExportSource
from engine.artifacts.export.transformer_facts import TransformerFacts
from engine.models.pipelines import open_pipeline

MAX_RELATIVE_DIFFERENCE = 1e-5  # float32 sums in another order; a lost alpha differs by a factor


@dataclass(frozen=True)
class KeyStyle:
    """How a format spells the keys of a layer's tensors.

    Attributes:
        prefix: before the layer's name.
        separator: between the parts of the name.
        down, up: after it; the scale is always `.alpha`.
    """

    prefix: str
    separator: str
    down: str
    up: str

    def key(self, layer: str) -> str:
        """The key of a layer, without what follows for each tensor."""
        return self.prefix + layer.replace(".", self.separator)


COMFYUI_KEYS = KeyStyle("diffusion_model.", ".", ".lora_A.weight", ".lora_B.weight")
KOHYA_KEYS = KeyStyle("lora_unet_", "_", ".lora_down.weight", ".lora_up.weight")


@dataclass
class LoraFile:
    """A file's LoRA, asked for by diffusers' names; it remembers which tensors were asked for."""

    tensors: dict[str, Tensor]
    keys: KeyStyle
    facts: TransformerFacts
    read: set[str] = field(default_factory=set)

    def delta(self, name: str) -> Tensor | None:
        """What the file adds to the weight (out, in) of diffusers' layer `name`, float32; None if nothing."""
        place = place_of(name, self.facts)
        base = self.keys.key(place.layer) if place else ""
        if place is None or base + self.keys.down not in self.tensors:
            return None
        self.read |= {base + self.keys.down, base + self.keys.up, base + ".alpha"}
        down, up = self.tensors[base + self.keys.down].float(), self.tensors[base + self.keys.up].float()
        alpha = self.tensors[base + ".alpha"].item() if base + ".alpha" in self.tensors else float(len(down))
        if place.swapped:
            up = torch.cat(list(reversed(up.chunk(2))))
        rows = up[place.start : place.start + self.facts.layers[name][0]]
        return (alpha / len(down)) * (rows @ down)


def read_lora_file(source: ExportSource, path: Path, keys: KeyStyle) -> LoraFile:
    """Open a file that was written for the run's transformer."""
    return LoraFile(load_file(path), keys, source.facts)


def add_to_pipeline(source: ExportSource, path: Path, keys: KeyStyle) -> Any:
    """The base pipeline (float32, on the CPU), the file's LoRA added into its weights. Raises ExportError."""
    file = read_lora_file(source, path, keys)
    pipeline: Any = open_pipeline(source.base, torch.float32)
    with torch.no_grad():
        for name in source.facts.layers:
            delta = file.delta(name)
            if delta is not None:
                pipeline.transformer.get_submodule(name).weight.add_(delta)
    unread = sorted(file.tensors.keys() - file.read)
    if unread:
        raise ExportError(
            f"The exported file was not kept: nothing reads its tensor {unread[0]}. The checkpoint itself is whole; "
            "please report this."
        )
    return pipeline


def weight_difference(source: ExportSource, path: Path, keys: KeyStyle) -> float:
    """The largest difference between what file and checkpoint add to a weight, relative to the largest of that layer.

    Raises ExportError beyond MAX_RELATIVE_DIFFERENCE, or if the file changes a layer that the run did not.
    """
    file, own, largest = read_lora_file(source, path, keys), lora_layers(source), 0.0
    for name in source.facts.layers:
        found, wanted = file.delta(name), own[name].delta() if name in own else None
        if found is None and wanted is None:
            continue
        reference = torch.zeros_like(found) if wanted is None and found is not None else wanted
        assert reference is not None
        size = reference.abs().max().item() or 1.0
        difference = (torch.zeros_like(reference) if found is None else found).sub(reference).abs().max().item() / size
        if not difference <= MAX_RELATIVE_DIFFERENCE:
            raise ExportError(
                f"The exported file was not kept: read back, it changes the layer {name} otherwise than the checkpoint "
                f"does (by {difference:.2g} of the change). The checkpoint itself is whole; please report this."
            )
        largest = max(largest, difference)
    return largest
