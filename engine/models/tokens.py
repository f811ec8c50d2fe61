"""Latents as a transformer's tokens: squares of them, row by row, and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def to_tokens(latents: Tensor, side: int) -> Tensor:
    """(B, C, h, w) as (B, h/side · w/side, C·side²): a token is a square, channel by channel."""
    return functional.pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, height: int, width: int, side: int) -> Tensor:
    """The latents (B, C, height·side, width·side) of tokens (B, height·width, C·side²), float32."""
    grid = tokens.float().transpose(1, 2).unflatten(2, (height, width))
    return functional.pixel_shuffle(grid, side)


def token_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Positions (height·width, 3) of an image's tokens as FLUX.1 counts them: 0, row, column."""
    positions = torch.zeros(height, width, 3, device=device)
    positions[..., 1] = torch.arange(height, device=device)[:, None]
    positions[..., 2] = torch.arange(width, device=device)
    return positions.flatten(0, 1)
