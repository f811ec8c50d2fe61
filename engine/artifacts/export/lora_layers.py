"""A LoRA as the layers it changes: ΔW = alpha/rank · up·down, and several of them as one of a stacked layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.artifacts.export.source import ExportError, ExportSource


@dataclass(frozen=True)
class LoraLayer:
    """What one linear layer has learned.

    Attributes:
        down: (r, in), also called A.
        up: (out, r), also called B.
        alpha: the scale is alpha/r.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def delta(self) -> Tensor:
        """What it adds to the weight, (out, in), float32."""
        return self.alpha / len(self.down) * (self.up.float() @ self.down.float())


def lora_layers(source: ExportSource) -> dict[str, LoraLayer]:
    """The run's LoRA by diffusers' names of the layers, in the export's precision.

    Raises ExportError if its rank is not that of the run's settings.
    """
    tuning = source.settings.tuning
    ranks = {tensor.shape[0] for key, tensor in source.weights.items() if key.endswith(".lora_A.weight")}
    if ranks != {tuning.rank}:
        found = ", ".join(map(str, sorted(ranks))) or "none"
        raise ExportError(
            f"The run's LoRA rank is {tuning.rank}, but the checkpoint's is {found}; it is not this run's."
        )
    names = sorted(key.removesuffix(".lora_A.weight") for key in source.weights if key.endswith(".lora_A.weight"))
    return {
        name: LoraLayer(
            source.stored(source.weights[f"{name}.lora_A.weight"]),
            source.stored(source.weights[f"{name}.lora_B.weight"]),
            tuning.alpha,
        )
        for name in names
    }


def scaled_layers(source: ExportSource) -> dict[str, LoraLayer]:
    """The same with the scale in `up`, and alpha the rank: right for readers that know alpha or not."""
    tuning = source.settings.tuning
    layers = lora_layers(source)
    return {
        name: LoraLayer(layer.down, scaled_up(source, source.weights[f"{name}.lora_B.weight"]), tuning.rank)
        for name, layer in layers.items()
    }


def scaled_up(source: ExportSource, up: Tensor) -> Tensor:
    """alpha/rank times the `up` of a checkpoint's layer, as the export holds it."""
    tuning = source.settings.tuning
    return source.stored(up.float() * (tuning.alpha / tuning.rank))


def stack(parts: Sequence[LoraLayer | None], num_rows: Sequence[int]) -> LoraLayer:
    """The LoRA of a layer whose weight is that of several, one below the other; None where one is not adapted.

    The n adapted parts keep their own directions, so its rank is n·r: `down` is theirs stacked, `up` is zero but for a
    block for each. Its alpha is n times theirs, which keeps the scale.
    """
    adapted = [part for part in parts if part is not None]
    rank = len(adapted[0].down)
    up = adapted[0].up.new_zeros(sum(num_rows), rank * len(adapted))
    row, column = 0, 0
    for part, rows in zip(parts, num_rows, strict=True):
        if part is not None:
            assert part.up.shape == (rows, rank), "one adapter has one rank, and fits its layer"
            up[row : row + rows, column : column + rank] = part.up
            column += rank
        row += rows
    return LoraLayer(torch.cat([part.down for part in adapted]), up, adapted[0].alpha * len(adapted))
