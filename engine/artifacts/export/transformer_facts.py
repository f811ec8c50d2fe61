"""What the base's transformer is, read from its configuration: its class, and the sizes of its linear layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn


@dataclass(frozen=True)
class TransformerFacts:
    """A transformer without its weights.

    Attributes:
        class_name: diffusers' class, such as FluxTransformer2DModel.
        config: what it was built with.
        layers: (out, in) of each linear layer, by diffusers' names.
    """

    class_name: str
    config: Mapping[str, Any]
    layers: Mapping[str, tuple[int, int]]

    @property
    def num_blocks(self) -> int:
        """One more than the largest block number in a layer's name."""
        numbers = [int(part) for name in self.layers for part in name.split(".") if part.isdigit()]
        return max(numbers, default=-1) + 1


def transformer_facts(base: Path) -> TransformerFacts:
    """Facts of the transformer in a pipeline folder."""
    config = json.loads((base / "transformer" / "config.json").read_text(encoding="utf-8"))
    class_name = config["_class_name"]
    with torch.device("meta"):
        transformer: Any = getattr(diffusers, class_name).from_config(config)
    layers = {
        name: (module.out_features, module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }
    return TransformerFacts(class_name, dict(transformer.config), layers)
