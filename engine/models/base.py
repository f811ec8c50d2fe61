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
    """Encoded prompts, a row a prompt, and the empty prompt's row that classifier-free guidance pulls away from.

    Attributes:
        tokens: (P, L, D) text tokens.
        pooled: (P, E) pooled text.
        empty_tokens: (1, L, D); None for a family without classifier-free guidance.
        empty_pooled: (1, E); None likewise.
        num_padding: how many equal tokens the last of `tokens` stands for (engine/models/padding.py).
    """

    tokens: Tensor
    pooled: Tensor
    empty_tokens: Tensor | None = None
    empty_pooled: Tensor | None = None
    num_padding: int = 1


# What published LoRAs of transformers with joint attention adapt, by diffusers' names: attention and feed-forward.
JOINT_ATTENTION_LORA_TARGETS: tuple[str, ...] = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip


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

    def release_encoders(self) -> None:
        """Free the text encoders' memory; no prompt can be encoded after it."""
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
        """Velocity v = ε − x0 at (B, C, h, w) latents and one σ; `rows` (B,) says which prompt each image follows.

        Raises ValueError for a guidance scale that the model cannot follow.
        """
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3) of final latents."""
        ...
