"""What is trained: a LoRA adapter (peft) or all weights; and their running average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from engine.models import TextToImage
from engine.seeds import derived_seed
from engine.settings import TuningSettings
from engine.sharding import kept_copy, parted


@dataclass(frozen=True)
class Trainable:
    """The trained weights by name, and the frozen base to compare with.

    Attributes:
        parameters: float32 parameters; LoRA names as peft's state dict has them (`….to_q.lora_A.weight`).
        base: the untuned weights of a full fine-tune, by the same names; empty for LoRA, whose adapter can be left out.
    """

    transformer: Any
    parameters: dict[str, nn.Parameter]
    base: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights, on the CPU; where they are held in parts, of this rank's."""
        return {name: kept_copy(parameter) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set the weights, to whole ones or to copies. Raises ValueError if the names or shapes differ."""
        if state.keys() != self.parameters.keys():
            different = sorted(state.keys() ^ self.parameters.keys())
            raise ValueError(
                f"These weights are not this run's: {len(different)} names differ, such as {different[0]}."
            )
        for name, parameter in self.parameters.items():
            if state[name].shape != parameter.shape:
                raise ValueError(
                    f"These weights are not of this model: {name} is {tuple(state[name].shape)} in them and "
                    f"{tuple(parameter.shape)} in the model."
                )
        for name, parameter in self.parameters.items():
            parameter.copy_(parted(state[name], parameter))

    def parted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole weights as these are held: this rank's parts of them, or themselves."""
        return {name: parted(state[name], parameter) for name, parameter in self.parameters.items()}

    @contextmanager
    def replaced_by(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """The weights are `state` inside the block, and themselves again after it."""
        own = self.state()
        self.load(state)
        try:
            yield
        finally:
            self.load(own)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """The transformer is the base model inside the block."""
        if self.base:
            with self.replaced_by(self.base):
                yield
            return
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()


def _adapted_layers(model: TextToImage, layers: Literal["blocks", "all"]) -> list[str]:
    """Names of the layers that a LoRA adapts; "all" adds modulation, embeddings and output to those of the blocks."""
    if layers == "blocks":
        return list(model.lora_targets)
    transformer: nn.Module = model.transformer
    return [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]


def make_trainable(model: TextToImage, tuning: TuningSettings, seed: int, keep_base: bool) -> Trainable:
    """Prepare a model for training: trained weights are float32, whatever the model's. LoRA starts as the identity.

    Its A is drawn from the run's seed, and B = 0.
    """
    transformer: Any = model.transformer
    if tuning.method == "lora":
        config = LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.alpha,
            target_modules=_adapted_layers(model, tuning.layers),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "adapter"))
            transformer.add_adapter(config)
        _keep_precise(transformer)
    else:
        transformer.requires_grad_(True).float()
    if tuning.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    parameters = {
        name.replace(".default.", "."): parameter
        for name, parameter in transformer.named_parameters()
        if parameter.requires_grad
    }
    base = {name: p.detach().clone() for name, p in parameters.items()} if tuning.method == "full" and keep_base else {}
    return Trainable(transformer, parameters, base)


def _keep_precise(transformer: nn.Module) -> None:
    """Hold a new LoRA in float32: peft gives it the precision of the layer it adapts."""
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            # peft would copy each input to float32, only for autocast to copy it back.
            module.cast_input_dtype_enabled = False
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class RunningAverage:
    """Exponential moving average of the trained weights: average ← d·average + (1−d)·weights, after every update."""

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: kept_copy(tensor) for name, tensor in state.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Move the average towards the weights."""
        for name, average in self.average.items():
            average.lerp_(parameters[name].detach().to(average.device), 1 - self.decay)
