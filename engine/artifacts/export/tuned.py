"""The engine's own model with a checkpoint's weights: what every export must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.artifacts.export.base import Held
from engine.artifacts.export.lora_layers import scaled_up
from engine.artifacts.export.source import ExportSource
from engine.batching import fixed_sizes
from engine.evaluation import draw
from engine.models import TextToImage, load_model
from engine.models.velocity import prompt_velocity
from engine.sampling.rollout import Velocity
from engine.tuning import make_trainable


@torch.no_grad()
def tuned_model(source: ExportSource, held: Held) -> TextToImage:
    """The run's model with the checkpoint's weights, in float32 on the CPU, rounded as the export holds them.

    "weights": a LoRA is added into the weights, and all of them are rounded; otherwise the LoRA itself is.
    """
    model = load_model(source.settings.model.model_copy(update={"precision": "float32"}))
    lora = source.settings.tuning.method == "lora"
    rounded = source.weights if held == "weights" else _rounded_lora(source, held)
    make_trainable(model, source.settings.tuning, source.settings.seed, keep_base=False).load(rounded)
    if held == "weights":
        transformer: Any = model.transformer
        if lora:
            transformer.fuse_lora()
            transformer.unload_lora()
        for tensor in transformer.state_dict().values():
            tensor.copy_(source.stored(tensor))
    return model


def _rounded_lora(source: ExportSource, held: Held) -> dict[str, Tensor]:
    tuning = source.settings.tuning
    return {
        name: scaled_up(source, tensor).float() / (tuning.alpha / tuning.rank)
        if held == "scaled lora" and name.endswith(".lora_B.weight")
        else source.stored(tensor).float()
        for name, tensor in source.weights.items()
    }


@torch.no_grad()
def draw_as_in_training(source: ExportSource, prompts: Sequence[str], held: Held) -> np.ndarray:
    """uint8 images (N, H, W, 3) of prompts, drawn as the engine draws the first tiles of its gallery."""
    model = tuned_model(source, held)

    def velocity_of(of: Sequence[str], guidance_scale: float) -> Velocity:
        return prompt_velocity(model, model.encode(of), guidance_scale, "float32")

    return draw(model, velocity_of, prompts, source.settings.evaluation, fixed_sizes(len(prompts), torch.device("cpu")))
