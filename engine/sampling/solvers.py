"""Solvers of the deterministic tail: our DPM-Solver++, diffusers' UniPC and DEIS; multistep, order 1 to 3.

DPM-Solver++ (arXiv 2211.01095, algorithm 2): α = 1−σ, λ = log(α/σ), on clean predictions x̂0. The last step (to σ = 0,
λ = ∞) is of first order; on grids of fewer than 15 steps the one before it is of second order at most: diffusers' rule,
which the published MixGRPO code keeps. Like the authors' code, diffusers' and MixGRPO's, order 3 gives the second
derivative half the weight of the expansion: its error falls with slope 3 while steps are few and 2 when they are many.
Kept, so that figures agree. Deviation: the history is an explicit record, so a step is a pure function and the
stochastic window can warm it.

UniPC (2302.04867) and DEIS (2204.13902) are diffusers' own schedulers. Deviations: they run on our grid, in float64,
and the model is called with our σ (their timesteps are whole numbers); the step to σ = 0 is taken here, where their
formulas have no value and their DEIS stops short of the image. SA-Solver, diffusers' one other multistep solver that
takes flow sigmas, is UniPC's bh1 once its noise is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from diffusers import DEISMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from engine.sampling.sde import clean_prediction, ode_step
from engine.settings import FlashSettings, SolverName

TailVelocity = Callable[[Tensor, float], Tensor]
"""(latents (B, …), σ) → velocity ε−x0 (B, …)."""

_MAX_ORDER = 3
_FEW_STEPS = 15
# diffusers' grids stop this far below σ = 1, where λ is infinite.
_BELOW_ONE = 1e-6


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


class Solver(Protocol):
    """A deterministic way down a grid of σ's; rows of the batch do not touch each other."""

    def integrate(
        self,
        velocity: TailVelocity,
        latents: Tensor,
        sigmas: tuple[float, ...],
        history: History | None = None,
        steps_before: int = 0,
    ) -> Tensor:
        """The latents (B, …) at the end of the grid `sigmas`, of which `steps_before` steps were taken already.

        `history` holds the newest predictions of the steps before; a solver that cannot use it starts at order 1.
        """
        ...


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
        velocity: TailVelocity,
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


@dataclass(frozen=True)
class UniPcSolver:
    """UniPC: a corrector without a forward of its own makes order 1 one of 2, and 2 one of 3 (3 ends in lower steps).

    `solver_type` is its B(h): "bh2" (e^−h − 1) or "bh1" (−h). The predictor is warm from the history; the corrector
    begins after the first step, since no deterministic step led to the state before it.
    """

    order: Literal[1, 2, 3] = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"

    def integrate(
        self,
        velocity: TailVelocity,
        latents: Tensor,
        sigmas: tuple[float, ...],
        history: History | None = None,
        steps_before: int = 0,
    ) -> Tensor:
        """The latents (B, …) at the end of the grid `sigmas`, of which `steps_before` steps were taken already."""
        history = history or History()
        scheduler = UniPCMultistepScheduler(
            solver_order=self.order, solver_type=self.solver_type,
            prediction_type="flow_prediction", use_flow_sigmas=True,
        )  # fmt: skip
        cleans = history.cleans[-self.order :]
        scheduler.model_outputs = [None] * (self.order - len(cleans)) + list(cleans)
        scheduler.lower_order_nums = len(cleans)
        return _integrate(scheduler, velocity, latents, sigmas, history.sigmas, steps_before)


@dataclass(frozen=True)
class DeisSolver:
    """DEIS in log ρ, on noise predictions: those of the window lack the noise drawn after them, so it starts cold.

    The first step, of order 1, leaves an error of slope 2, which outlasts order 3's own when steps are many.
    """

    order: Literal[1, 2, 3] = 2

    def integrate(
        self,
        velocity: TailVelocity,
        latents: Tensor,
        sigmas: tuple[float, ...],
        history: History | None = None,
        steps_before: int = 0,
    ) -> Tensor:
        """The latents (B, …) at the end of the grid `sigmas`; `history` is not used."""
        scheduler = DEISMultistepScheduler(
            solver_order=self.order, prediction_type="flow_prediction", use_flow_sigmas=True
        )
        return _integrate(scheduler, velocity, latents, sigmas, (), steps_before)


SOLVERS: dict[SolverName, Callable[..., Solver]] = {"dpmsolver++": DpmSolver, "unipc": UniPcSolver, "deis": DeisSolver}


def make_solver(flash: FlashSettings) -> Solver:
    """The solver that the settings name, of their order and variant (its usual one if they leave that open)."""
    variant = {} if flash.solver_type is None else {"solver_type": flash.solver_type}
    return SOLVERS[flash.solver](order=flash.order, **variant)


def largest_order(step: int, num_steps: int) -> int:
    """The highest order allowed at a step of a grid: 1 on the last, 2 on the one before it if steps are few, else 3."""
    if step == num_steps - 1:
        return 1
    if step == num_steps - 2 and num_steps < _FEW_STEPS:
        return 2
    return _MAX_ORDER


def _integrate(  # noqa: PLR0917 - as `integrate`, after the scheduler
    scheduler: Any,
    velocity: TailVelocity,
    latents: Tensor,
    sigmas: tuple[float, ...],
    sigmas_before: tuple[float, ...],
    steps_before: int,
) -> Tensor:
    """A diffusers scheduler's way down the grid; `sigmas_before` are those of the predictions it already holds."""
    assert len(sigmas_before) <= steps_before, "a prediction is of a step"
    num_steps = steps_before + len(sigmas) - 1
    # Places before the predictions it holds are never read.
    grid = (1.0,) * (steps_before - len(sigmas_before)) + sigmas_before + sigmas
    scheduler.sigmas = torch.tensor(grid, dtype=torch.float64).clamp(max=1.0 - _BELOW_ONE)
    scheduler.timesteps = torch.arange(num_steps)
    scheduler.num_inference_steps, scheduler._step_index = num_steps, steps_before
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas), start=steps_before):
        predicted = velocity(latents, sigma).to(latents.dtype)
        if sigma_next == 0.0:
            return clean_prediction(latents, predicted, sigma)
        stepped = scheduler.step(predicted, step, latents).prev_sample
        # Without a past a step is of first order: Euler's, which near σ = 1 keeps the digits that DEIS's form loses.
        cold = step == steps_before and not sigmas_before
        latents = ode_step(latents, predicted, sigma, sigma_next) if cold else stepped
    return latents


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
