"""What every adapter does with its diffusers pipeline: freeze it, and turn latents into pixels as it would."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def freeze(pipeline: Any) -> None:
    """No gradients, evaluation mode and no progress bars, for every part of a pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()


def release_encoders(pipeline: Any) -> None:
    """Let go of every text encoder of a pipeline."""
    for name in list(pipeline.components):
        if name.startswith("text_encoder"):
            setattr(pipeline, name, None)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> np.ndarray:
    """uint8 images (N, H, W, 3) of latents (N, C, h, w), by an AutoencoderKL with a scaling and a shift factor."""
    images = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
    scaled = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (scaled * 255).round().astype(np.uint8)
