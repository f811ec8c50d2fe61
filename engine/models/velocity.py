"""A model's velocity for one set of prompts, as the samplers ask for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from engine.models.base import PromptEmbeddings, TextToImage
from engine.sampling.rollout import Velocity


def prompt_velocity(
    model: TextToImage,
    embeddings: PromptEmbeddings,
    guidance_scale: float,
    precision: Literal["float32", "bfloat16"],
) -> Velocity:
    """The velocity with these prompts, the transformer's arithmetic in that precision."""

    def velocity(latents: Tensor, sigma: float, rows: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return model.velocity(latents, sigma, embeddings, rows, guidance_scale)

    return velocity
