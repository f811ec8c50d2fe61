"""Hybrid inference: the tuned weights draw the first share p of the denoising steps, the base model the rest.

MixGRPO (arXiv 2507.21802), its cure for reward hacking: the early steps lay a picture out, which is where tuning is
wanted; the late ones, where a hacked reward shows, are the base model's. No known deviations from the paper, which does
not say how p·T is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from engine.batching import BatchSize
from engine.sampling.rollout import Velocity, sample_ode


def num_tuned_steps(share: float, num_steps: int) -> int:
    """Steps drawn by the tuned weights: round(p·T), halves up. Raises ValueError if p is not within 0 and 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"The share of steps drawn with the tuned weights must be between 0 and 1, not {share:g}.")
    # The decimal that was written is what is meant: in binary, 0.58 of 25 steps is a hair below 14.5.
    return math.floor(Fraction(repr(float(share))) * num_steps + Fraction(1, 2))


@dataclass(frozen=True)
class Hybrid:
    """Draws like `sample_ode`, with the base model after `num_tuned` steps.

    Attributes:
        base: a context in which the velocity is the base model's (`Trainable.left_out`).
    """

    num_tuned: int
    base: Callable[[], AbstractContextManager[None]]

    def sample(
        self,
        velocity: Velocity,
        noise: Tensor,
        prompt_index: Tensor,
        sigmas: Sequence[float],
        micro_batch: int | BatchSize,
    ) -> Tensor:
        """The images' latents (B, …) at the end of the grid σ (T+1,), from `noise` (B, …) at its start."""
        latents = sample_ode(velocity, noise, prompt_index, sigmas[: self.num_tuned + 1], micro_batch)
        if self.num_tuned == len(sigmas) - 1:
            return latents
        with self.base():
            return sample_ode(velocity, latents, prompt_index, sigmas[self.num_tuned :], micro_batch)
