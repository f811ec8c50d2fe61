"""What an update asks of an objective: its loss at one step of some images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ImageVelocity = Callable[[Tensor, float, Tensor], Tensor]
"""(latents (B, …), σ, place (B,) of each among the iteration's images, on the CPU) → velocity (B, …)."""


@dataclass(frozen=True)
class StepTerms:
    """One step's loss and what to watch of it; all 0-dim tensors.

    loss: mean over the images, to minimise. The rest carry no gradient. drift: the largest departure from the policy
    that drew the images, |ρ−1| (GRPO) or |v−v_old|/|v_old| (DiffusionNFT). clipped_share: of samples with |ρ−1| > ε.
    """

    loss: Tensor
    drift: Tensor
    clipped_share: Tensor


class Objective(Protocol):
    """The loss of an iteration, step by step."""

    @property
    def trained(self) -> Tensor:
        """(S, N) bool: which of the S steps each of the N images is trained at; every image at equally many."""
        ...

    def terms(self, step: int, images: Tensor) -> StepTerms:
        """The loss at one step of the images (B,) long, on the CPU, all of them trained there; a mean over them."""
        ...


def choose_steps(num_steps: int, num_images: int, num_chosen: int, generator: torch.Generator) -> Tensor:
    """(S, N) bool: for each image `num_chosen` of the steps, without repeats and independent of other images'."""
    if num_chosen == num_steps:
        return torch.ones(num_steps, num_images, dtype=torch.bool)
    order = torch.rand(num_steps, num_images, generator=generator).argsort(dim=0)
    chosen = torch.zeros(num_steps, num_images, dtype=torch.bool)
    return chosen.scatter_(0, order[:num_chosen], value=True)
