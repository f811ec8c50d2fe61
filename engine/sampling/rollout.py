"""The mixed denoise loop: ODE prefix, stochastic window, ODE or Flash tail (MixGRPO, arXiv 2507.21802).

Deviations from the published code: with shared initial noise the prefix, the same for a whole group, is computed once
per prompt and then branches (exact, up to batch-size effects of float32 arithmetic; there it is computed G times);
images are sampled in batches, every prompt of them; σ enters the model unrounded; the Flash tail reaches σ = 0.
Order of every batch of P·G: prompt-major, image g of prompt p at p·G+g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from engine.batching import BatchSize
from engine.ranks import ALONE, Ranks, Share
from engine.sampling.schedule import flow_sigmas, regrid_tail, tail_sigmas
from engine.sampling.sde import Kernel, clean_prediction, draw, log_prob, ode_step
from engine.sampling.solvers import History, Solver, make_solver
from engine.settings import FlashSettings, SamplingSettings
from engine.work import num_tail_steps

Velocity = Callable[[Tensor, float, Tensor], Tensor]
"""(latents (B, …), σ, prompt index (B,) long, on the CPU) → velocity ε−x0 (B, …), in any float precision."""


@dataclass(frozen=True)
class Plan:
    """The steps of one rollout: grid σ (T+1), window l … l+W−1, and for Flash the tail's grid and solver.

    A window of no steps, at 0, makes every step deterministic.
    """

    sigmas: tuple[float, ...]
    window_start: int
    window_size: int
    tail: tuple[float, ...] | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        assert (self.tail is None) == (self.solver is None), "a tail's grid and its solver come together"
        no_window = self.window_start == self.window_size == 0
        if not no_window and not 0 <= self.window_start < self.num_steps - self.window_size < self.num_steps:
            raise ValueError(
                f"A window of {self.window_size} steps from step {self.window_start} does not fit {self.num_steps} "
                "sampling steps: the step to σ = 0 is never stochastic."
            )

    @property
    def num_steps(self) -> int:
        """Steps T of the whole grid."""
        return len(self.sigmas) - 1

    @property
    def window_end(self) -> int:
        """The first step after the window, l+W."""
        return self.window_start + self.window_size

    @property
    def window_steps(self) -> tuple[tuple[float, float], ...]:
        """(σ, σ_next) of each of the window's W steps: those a training path recomputes."""
        edges = self.sigmas[self.window_start : self.window_end + 1]
        return tuple(pairwise(edges))

    @property
    def sigma_first(self) -> float:
        """σ₁ of the grid, which Flow-SDE needs at σ = 1."""
        return self.sigmas[1]

    @property
    def tail_grid(self) -> tuple[float, ...]:
        """The σ's from the window's end to 0: Flash's, or the rest of the grid."""
        return self.sigmas[self.window_end :] if self.tail is None else self.tail


@dataclass(frozen=True)
class Rollout:
    """Sampled images and what training needs of them; N = P·G, prompt-major; float32 unless the noise was float64.

    latents: (N, …) at σ = 0. states: (W+1, N, …) at the window's edges. means (W, N, …) and log_probs (W, N), float64:
    of the window's steps, by the policy that drew them.
    num_velocities: velocities of one image, counted as they were asked for.
    """

    latents: Tensor
    states: Tensor
    means: Tensor
    log_probs: Tensor
    plan: Plan
    num_velocities: int


def make_plan(
    sampling: SamplingSettings,
    flash: FlashSettings,
    window_start: int,
    window_size: int,
    model_sigmas: Tensor | None = None,
) -> Plan:
    """The plan with that window (of no steps: all deterministic).

    `model_sigmas` (T+1,) is the model's own grid, used for shift "model".
    Raises ValueError if the window does not fit, or the model's grid is missing or no grid of T steps down to 0.
    """
    num_steps, end = sampling.num_steps, window_start + window_size
    grid = _model_grid(model_sigmas, num_steps) if sampling.shift == "model" else flow_sigmas(num_steps, sampling.shift)
    plan = Plan(tuple(grid.tolist()), window_start, window_size)
    if not flash.enabled:
        return plan
    if sampling.shift == "model":
        tail = regrid_tail(grid, end, num_tail_steps(num_steps - end, flash.ratio))
    else:
        tail = tail_sigmas(num_steps, sampling.shift, end, flash.ratio)
    return Plan(plan.sigmas, window_start, window_size, tuple(tail.tolist()), make_solver(flash))


@torch.no_grad()
def rollout(  # noqa: PLR0917 - what goes in, in the order it is used
    velocity: Velocity,
    noise: Tensor,
    num_prompts: int,
    group_size: int,
    plan: Plan,
    kernel: Kernel,
    generator: torch.Generator,
    *,
    shared_prefix: bool,
    micro_batch: int | BatchSize,
    share: Share | None = None,
) -> Rollout:
    """Draws G images for each of P prompts from `noise`: (P, …) shared by a group, or (P·G, …), one for each image.

    The window's noise comes from `generator`, for the whole batch at once: micro-batching changes no draw. These images
    may be a `share` of a batch; their noise is then that of their rows.
    Raises ValueError if the noise has another number of rows, or is not shared though the prefix is.
    """
    forward = MicroBatches(velocity, micro_batch)
    latents = _initial_latents(noise, num_prompts, group_size, shared_prefix)
    prompts = torch.arange(num_prompts)
    images = prompts.repeat_interleave(group_size)
    latents, history = _prefix(forward, latents, prompts if shared_prefix else images, plan)
    if shared_prefix:
        latents, history = latents.repeat_interleave(group_size, dim=0), history.repeat(group_size)
    share = share or Share.whole(len(images))
    window, history = _window(forward, latents, images, history, plan, kernel=kernel, generator=generator, share=share)
    latents = _tail(forward, window.states[-1], images, plan, history)
    return Rollout(latents, window.states, window.means, window.log_probs, plan, forward.num_velocities)


@torch.no_grad()
def sample_ode(
    velocity: Velocity, noise: Tensor, prompt_index: Tensor, sigmas: Sequence[float], micro_batch: int | BatchSize
) -> Tensor:
    """The images' latents (B, …) at the end of the grid, from `noise` (B, …) at its start, by Euler's steps alone."""
    forward = MicroBatches(velocity, micro_batch)
    return _euler(forward, _working(noise), prompt_index, sigmas)


@dataclass(frozen=True)
class _Window:
    """The stochastic steps, as `Rollout` has them."""

    states: Tensor
    means: Tensor
    log_probs: Tensor


class MicroBatches:
    """A velocity evaluated at most `size` images at a time, which counts the images.

    `ranks` are those whose numbers of images may differ, to be kept in step where they hold the weights in parts.
    """

    def __init__(self, velocity: Velocity, size: int | BatchSize, ranks: Ranks = ALONE) -> None:
        self.velocity = velocity
        self.size = BatchSize.of(size, "sample")
        self.ranks = ranks
        self.num_velocities = 0

    def __call__(self, latents: Tensor, sigma: float, prompt_index: Tensor) -> Tensor:
        """The velocity (B, …), in parts."""
        self.num_velocities += len(latents)
        num_parts = -(-len(latents) // self.size.limit)
        num_idle = self.ranks.busiest(num_parts) - num_parts
        for _ in range(num_idle):
            self.velocity(latents.new_zeros(1, *latents.shape[1:]), sigma, prompt_index.new_zeros(1))
        if not num_parts:
            return torch.zeros_like(latents)
        parts = self.size.map(len(latents), lambda rows: self.velocity(latents[rows], sigma, prompt_index[rows]))
        return torch.cat(parts)


def _prefix(forward: MicroBatches, latents: Tensor, prompt_index: Tensor, plan: Plan) -> tuple[Tensor, History]:
    """The ODE steps before the window, with their clean predictions."""
    history = History()
    for sigma, sigma_next in pairwise(plan.sigmas[: plan.window_start + 1]):
        velocity = forward(latents, sigma, prompt_index)
        history = _warmed(history, plan, latents, velocity, sigma)
        latents = ode_step(latents, velocity, sigma, sigma_next)
    return latents, history


def _window(
    forward: MicroBatches,
    latents: Tensor,
    prompt_index: Tensor,
    history: History,
    plan: Plan,
    *,
    kernel: Kernel,
    generator: torch.Generator,
    share: Share,
) -> tuple[_Window, History]:
    """The stochastic steps, and the clean predictions."""
    states = latents.new_empty(plan.window_size + 1, *latents.shape)
    means = latents.new_empty(plan.window_size, *latents.shape)
    log_probs = latents.new_empty(plan.window_size, len(latents), dtype=torch.float64)
    states[0] = latents
    for step, (sigma, sigma_next) in enumerate(plan.window_steps):
        velocity = forward(latents, sigma, prompt_index)
        history = _warmed(history, plan, latents, velocity, sigma)
        transition = kernel.transition(latents, velocity, sigma, sigma_next, plan.sigma_first)
        latents = draw(transition, share.normal(latents, generator))
        states[step + 1], means[step] = latents, transition.mean
        log_probs[step] = log_prob(transition, latents)
    return _Window(states, means, log_probs), history


def _tail(forward: MicroBatches, latents: Tensor, prompt_index: Tensor, plan: Plan, history: History) -> Tensor:
    """The deterministic steps after the window, to σ = 0."""
    if plan.solver is None:
        return _euler(forward, latents, prompt_index, plan.tail_grid)
    return plan.solver.integrate(
        lambda state, sigma: forward(state, sigma, prompt_index), latents, plan.tail_grid, history, plan.window_end
    )


def _euler(forward: MicroBatches, latents: Tensor, prompt_index: Tensor, sigmas: Sequence[float]) -> Tensor:
    for sigma, sigma_next in pairwise(sigmas):
        latents = ode_step(latents, forward(latents, sigma, prompt_index), sigma, sigma_next)
    return latents


def _warmed(history: History, plan: Plan, latents: Tensor, velocity: Tensor, sigma: float) -> History:
    """The history with this step's prediction, if a solver will use it."""
    return history if plan.solver is None else history.add(sigma, clean_prediction(latents, velocity, sigma))


def _initial_latents(noise: Tensor, num_prompts: int, group_size: int, shared_prefix: bool) -> Tensor:
    """The latents at σ = 1: (P, …) for a shared prefix, (P·G, …) without."""
    num_images = num_prompts * group_size
    if len(noise) not in (num_prompts, num_images):
        raise ValueError(
            f"The initial noise has {len(noise)} rows; it needs {num_prompts} (one a prompt) or {num_images} (one an "
            "image)."
        )
    if shared_prefix and len(noise) != num_prompts:
        raise ValueError("A shared prefix needs shared noise: one row a prompt, not one an image.")
    shared_noise_alone = len(noise) == num_prompts and not shared_prefix
    return _working(noise.repeat_interleave(group_size, dim=0) if shared_noise_alone else noise)


def _model_grid(model_sigmas: Tensor | None, num_steps: int) -> Tensor:
    if model_sigmas is None:
        raise ValueError('sampling.shift is "model", but this model brings no time grid of its own; give a number.')
    grid = model_sigmas.to(device="cpu", dtype=torch.float64)
    falls = bool((grid.diff() < 0).all()) and float(grid[-1]) == 0.0 and float(grid[0]) <= 1.0
    if grid.shape != (num_steps + 1,) or not falls:
        raise ValueError(f"The model's time grid must fall from at most 1 to 0 in {num_steps} steps.")
    return grid


def _working(latents: Tensor) -> Tensor:
    """The latents in the precision of the loop: float32, or float64 if they come in that."""
    return latents.to(torch.promote_types(latents.dtype, torch.float32))
