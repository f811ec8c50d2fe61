"""DPM-Solver++ for flow matching (arXiv 2211.01095, algorithm 2), multistep, order 1 to 3.

α = 1−σ, λ = log(α/σ), on clean predictions x̂0. The last step (to σ = 0, λ = ∞) is of first order; on grids of fewer
than 15 steps the one before it is of second order at most: diffusers' rule, which the published MixGRPO code keeps.
Like the authors' code, diffusers' and MixGRPO's, order 3 gives the second derivative half the weight of the expansion:
its error falls with slope 3 while steps are few and 2 when they are many. Kept, so that figures agree.
Deviation: the history is an explicit record, so a step is a pure function and the stochastic window can warm it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from engine.sampling.sde import clean_prediction

_MAX_ORDER = 3
_FEW_STEPS = 15


@dataclass(frozen=True)
class History:
    """The newest clean predictions, oldest first: σ's and x̂0's (B, …), at most as many as the highest order uses."""

    sigmas: tuple[float, ...] = ()
    cleans: tuple[Tensor, ...] = ()

    def add(self, sigma: float, clean: Tensor) -> History:
        """The history with one more prediction."""
        return History((*self.sigmas, sigma)[-_MAX_ORDER:], (*self.cleans, clean)[-_MAX_ORDER:])

    def repeat(self, times: int) -> History:
        """The history with each row of the batch repeated in place, for a trajectory that branches."""
        return History(self.sigmas, tuple(clean.repeat_interleave(times, dim=0) for clean in self.cleans))


@dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver++ of one order; `solver_type` chooses the variant of second-order steps."""

    order: Literal[1, 2, 3] = 2
    solver_type: Literal["midpoint", "heun"] = "midpoint"

    def step(self, latents: Tensor, history: History, sigma_next: float, max_order: int = _MAX_ORDER) -> Tensor:
        """The latents (B, …) at `sigma_next`; the newest prediction of `history` is the one at `latents`."""
        sigma, clean = history.sigmas[-1], history.cleans[-1]
        order = min(self.order, max_order, len(history.sigmas))
        # α_next·(e^−h − 1) with h = λ_next − λ, written so that it is finite at σ = 1 and at σ_next = 0.
        decay = (1.0 - sigma) * sigma_next / sigma - (1.0 - sigma_next)
        base = (sigma_next / sigma) * latents - decay * clean
        if order == 1 or sigma_next == 0.0:
            return base
        if order == 2:
            return base + self._second_order(history, sigma_next, decay)
        return base + _third_order(history, sigma_next, decay)

    def integrate(
        self,
        velocity: Callable[[Tensor, float], Tensor],
        latents: Tensor,
        sigmas: tuple[float, ...],
        history: History | None = None,
        steps_before: int = 0,
    ) -> Tensor:
        """The latents (B, …) at the end of the grid `sigmas`, of which `steps_before` steps were taken already."""
        history = history or History()
        num_steps = steps_before + len(sigmas) - 1
        for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            history = history.add(sigma, clean_prediction(latents, velocity(latents, sigma), sigma))
            latents = self.step(latents, history, sigma_next, largest_order(steps_before + index, num_steps))
        return latents

    def _second_order(self, history: History, sigma_next: float, decay: float) -> Tensor:
        step, step_before = _lambda_steps(history, sigma_next)[-1::-1][:2]
        # A history that starts at σ = 1 has an infinite step before: its slope is 0, and the step is of first order.
        slope = (step / step_before) * (history.cleans[-1] - history.cleans[-2])
        if self.solver_type == "midpoint":
            return -0.5 * decay * slope
        return (decay / step + (1.0 - sigma_next)) * slope


def largest_order(step: int, num_steps: int) -> int:
    """The highest order allowed at a step of a grid: 1 on the last, 2 on the one before it if steps are few, else 3."""
    if step == num_steps - 1:
        return 1
    if step == num_steps - 2 and num_steps < _FEW_STEPS:
        return 2
    return _MAX_ORDER


def _third_order(history: History, sigma_next: float, decay: float) -> Tensor:
    oldest, older, step = _lambda_steps(history, sigma_next)
    clean, clean_1, clean_2 = history.cleans[-1], history.cleans[-2], history.cleans[-3]
    alpha = 1.0 - sigma_next
    slope = (step / older) * (clean - clean_1)
    bend = slope - (step / oldest) * (clean_1 - clean_2)
    first = slope + (older / (older + oldest)) * bend
    # The expansion would have twice this (see the module's docstring).
    second = (step / (older + oldest)) * bend
    return (decay / step + alpha) * first - ((decay + alpha * step) / step**2 - 0.5 * alpha) * second


def _lambda_steps(history: History, sigma_next: float) -> list[float]:
    """The steps in λ between the predictions of the history and on to `sigma_next`, oldest first."""
    lambdas = [_half_log_snr(sigma) for sigma in (*history.sigmas, sigma_next)]
    return [later - earlier for earlier, later in pairwise(lambdas)]


def _half_log_snr(sigma: float) -> float:
    if sigma >= 1.0:
        return -math.inf
    return math.log((1.0 - sigma) / sigma)
