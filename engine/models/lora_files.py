"""LoRA files of other programs, as changes of the weights they adapt: ΔW = (alpha/rank)·B·A.

Key names are those of diffusers (`transformer.<layer>.lora_A.weight`), of ComfyUI (`diffusion_model.<layer>…` and
`.alpha`) and of kohya (`lora_unet_<layer with underscores>.lora_down.weight`), over diffusers' names of layers. Where
a file names layers as the family's authors do, diffusers' own converter is asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.starting_files import LORA_DOWN, LoraError, refuse_other_adapters
from engine.tensor_headers import Header

_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.",
    "lora_unet_", "lora_transformer_",
)  # fmt: skip
_UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight")
_ALPHA = (".alpha",)
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraPair:
    """One layer's adapter: A (rank, in), B (out, rank), and the scale alpha/rank."""

    down: Tensor
    up: Tensor
    scale: float

    def change(self) -> Tensor:
        """ΔW (out, in), float32."""
        return self.scale * (self.up.float() @ self.down.float())


def read_lora(path: Path, header: Header, transformer: nn.Module, pipeline: Any) -> dict[str, LoraPair]:
    """The adapters in a file, by the layers of the transformer they belong to.

    `pipeline` is diffusers' pipeline class, whose converter knows other programs' names. Raises LoraError.
    """
    refuse_other_adapters(path, header)
    tensors = load_file(path)
    layers = _layers_by_name(transformer)
    if not all(_layer(name, layers) for name in tensors):
        tensors = _converted(path, tensors, pipeline)
        strange = [name for name in tensors if _layer(name, layers) is None]
        if strange:
            raise LoraError(
                f"{path} is a LoRA of another model: {len(strange)} of its tensors belong to no layer of this one, "
                f"such as {strange[0]}."
            )
    return _pairs(path, tensors, layers, _told_scale(header))


def _layers_by_name(transformer: nn.Module) -> dict[str, str]:
    """Linear layers by their names, and by the same with underscores for dots, as kohya writes them."""
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    return {name.replace(".", "_"): name for name in names} | {name: name for name in names}


def _ending(name: str, endings: tuple[str, ...]) -> str | None:
    return next((ending for ending in endings if name.endswith(ending)), None)


def _layer(name: str, layers: Mapping[str, str]) -> str | None:
    """The layer that a tensor of a LoRA file belongs to, or None."""
    ending = _ending(name, (*LORA_DOWN, *_UP, *_ALPHA))
    if ending is None:
        return None
    bare = name.removesuffix(ending)
    while prefix := next((prefix for prefix in _PREFIXES if bare.startswith(prefix)), None):
        if bare in layers:
            break
        bare = bare.removeprefix(prefix)
    return layers.get(bare)


def _converted(path: Path, tensors: Mapping[str, Tensor], pipeline: Any) -> dict[str, Tensor]:
    """The tensors by diffusers' names. Raises LoraError if its converter does not know theirs."""
    try:
        # A copy: the converters take out of it what they have read.
        converted = pipeline.lora_state_dict(dict(tensors))
    except Exception as error:  # a foreign parser on a foreign file: whatever it raises, the file is what is wrong
        raise LoraError(f"{path} names its layers in a way that is not known for this model ({error}).") from error
    return dict(converted[0] if isinstance(converted, tuple) else converted)


def _told_scale(header: Header) -> float | None:
    """alpha/rank as diffusers and peft write it into a header; None where it says nothing."""
    try:
        config = json.loads(header.texts.get(_METADATA, "{}"))
        facts = {name.removeprefix("transformer."): value for name, value in config.items()}
        if not {"r", "lora_alpha"} <= facts.keys() or facts.get("alpha_pattern") or facts.get("rank_pattern"):
            return None
        rank = math.sqrt(facts["r"]) if facts.get("use_rslora") else facts["r"]
        return float(facts["lora_alpha"]) / rank
    except (ValueError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _pairs(
    path: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, str], told: float | None
) -> dict[str, LoraPair]:
    """A, B and scale of each layer. Raises LoraError where one of the two is missing or they do not fit."""
    downs, ups, alphas = (_by_layer(tensors, layers, endings) for endings in (LORA_DOWN, _UP, _ALPHA))
    if downs.keys() != ups.keys():
        raise LoraError(f"{path} is not whole: {min(downs.keys() ^ ups.keys())} has only one of its two matrices.")
    pairs = {}
    for layer, down in downs.items():
        up = ups[layer]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise LoraError(f"{path} holds no pair of matrices for {layer}: {tuple(down.shape)} and {tuple(up.shape)}.")
        rank = down.shape[0]
        scale = float(alphas[layer]) / rank if layer in alphas else (1.0 if told is None else told)
        pairs[layer] = LoraPair(down, up, scale)
    return pairs


def _by_layer(tensors: Mapping[str, Tensor], layers: Mapping[str, str], endings: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        layer: tensor
        for name, tensor in tensors.items()
        if _ending(name, endings) and (layer := _layer(name, layers)) is not None
    }


@torch.no_grad()
def merge_lora(path: Path, pairs: Mapping[str, LoraPair], transformer: nn.Module) -> None:
    """Add each ΔW to its layer's weight, in float32 whatever the weight's type. Raises LoraError if shapes differ."""
    for layer, pair in pairs.items():
        weight: Any = transformer.get_submodule(layer).weight
        shape = (pair.up.shape[0], pair.down.shape[1])
        if shape != tuple(weight.shape):
            raise LoraError(
                f"{path} is a LoRA of another model: it changes {layer} as if that were {shape}, and it is "
                f"{tuple(weight.shape)}."
            )
    for layer, pair in pairs.items():
        weight = transformer.get_submodule(layer).weight
        weight.copy_((weight.float() + pair.change()).to(weight.dtype))
