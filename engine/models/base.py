"""What the engine asks of a model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PromptEmbeddings:
    """Encoded prompts, a row a prompt, and the empty prompt's row that guidance pulls away from.

    Attributes:
        tokens: (P, L, D) text tokens.
        pooled: (P, E) pooled text.
        empty_tokens: (1, L, D).
        empty_pooled: (1, E).
    """

    tokens: Tensor
    pooled: Tensor
    empty_tokens: Tensor
    empty_pooled: Tensor


class TextToImage(Protocol):
    """A flow-matching text-to-image model: encode prompts, draw initial noise, predict velocity, decode."""

    transformer: nn.Module
    lora_targets: Sequence[str]

    def to(self, device: torch.device) -> None:
        """Move every part to a device."""
        ...

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts."""
        ...

    def noise(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Initial latents (N, C, h, w), float32, from a CPU generator, as the family's pipeline draws them."""
        ...

    def sigmas(self, num_steps: int) -> Tensor:
        """The family's own σ grid (T+1,), float64, from its first σ to 0."""
        ...

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity v = ε − x0 at (B, C, h, w) latents and one σ; `rows` (B,) says which prompt each image follows."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3) of final latents."""
        ...
