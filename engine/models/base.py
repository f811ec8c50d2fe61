"""What the engine asks of a model family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.transfer import to_device


@dataclass(frozen=True)
class PromptEmbeddings:
    """Encoded prompts, and the empty prompt that classifier-free guidance pulls away from.

    Which prompts images follow, the host knows: an index of them is on the CPU.

    Attributes:
        texts: what the family's transformer is told of the prompts, by names of its own: tokens (P, L, D), pooled text
            (P, E), masks (P, L), …; a row a prompt.
        empty: the same of the empty prompt, one row; None for a family without classifier-free guidance.
        num_padding: how many equal tokens the last one stands for (engine/models/padding.py).
    """

    texts: Mapping[str, Tensor]
    empty: Mapping[str, Tensor] | None = None
    num_padding: int = 1

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """What the transformer is told for images (B,) that follow these prompts.

        Where there is a mask, `lengths` (B,), on the CPU, are the numbers of tokens that it counts.
        """
        place = to_device(index, next(iter(self.texts.values())).device)
        rows = {name: tensor[place] for name, tensor in self.texts.items()}
        return rows | ({"lengths": self._lengths[0][index]} if self._lengths else {})

    def guided_rows(self, index: Tensor) -> dict[str, Tensor]:
        """The same for 2·B images: B of the empty prompt, then B of these prompts; shorter ones padded with zeros."""
        assert self.empty is not None, "encode() gives an empty prompt where there is classifier-free guidance"
        nothing = {name: tensor.expand(len(index), *tensor.shape[1:]) for name, tensor in self.empty.items()}
        if self._lengths:
            nothing["lengths"] = self._lengths[1].expand(len(index))
        full = self.rows(index)
        return {name: stack_padded([nothing[name], full[name]]) for name in full}

    @cached_property
    def _lengths(self) -> list[Tensor]:
        """Tokens of the prompts (P,) and of the empty one (1,), read from the device once; none without a mask."""
        texts = [self.texts] if self.empty is None else [self.texts, self.empty]
        return [text["mask"].sum(1).long().cpu() for text in texts if "mask" in text]


def stack_embeddings(parts: Sequence[PromptEmbeddings], device: torch.device) -> PromptEmbeddings:
    """One for the prompts of all parts, on the device. Shorter texts are padded with zeros, as their masks are."""
    first = parts[0]
    assert all(other.num_padding == first.num_padding for other in parts), "one family pads alike"
    texts = {name: stack_padded([part.texts[name] for part in parts]).to(device) for name in first.texts}
    empty = None if first.empty is None else {name: tensor.to(device) for name, tensor in first.empty.items()}
    return PromptEmbeddings(texts, empty, first.num_padding)


def stack_padded(rows: Sequence[Tensor]) -> Tensor:
    """Tensors (Pᵢ, Lᵢ, …) as one (ΣPᵢ, max Lᵢ, …), zeros after the shorter; of (Pᵢ,) there is nothing to pad."""
    if rows[0].ndim == 1:
        return torch.cat(list(rows))
    longest = max(tensor.shape[1] for tensor in rows)
    padding = [(0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1]) for tensor in rows]
    return torch.cat([functional.pad(tensor, pad) for tensor, pad in zip(rows, padding, strict=True)])


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

        `rows` is on the CPU. Nothing that is asked of the device is waited for.

        Raises ValueError for a guidance scale that the model cannot follow.
        """
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3) of final latents."""
        ...
