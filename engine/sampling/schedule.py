"""The time grid of flow matching: σ from 1 (noise) to 0 (image).

Deviations from MixGRPO's published code (arXiv 2507.21802): σ enters the model as it is, never truncated to a
thousandth; the Flash tail has n steps, n+1 points, and always ends at σ = 0 (the published grid takes n as points, so
for n = 1 the image stays noisy); n is rounded up, from the ratio's decimal digits, so 0.55 of 20 steps is 11, not 12.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.work import num_tail_steps


def flow_sigmas(num_steps: int, shift: float) -> Tensor:
    """The grid σ_i = shift·s/(1+(shift−1)·s), s = 1−i/T: (T+1,) float64 from 1 to exactly 0 (SD3, 2403.03206, eq. 23).

    Raises ValueError if there is no step or `shift` is not a positive number.
    """
    if num_steps < 1:
        raise ValueError(f"A time grid needs at least one step, not {num_steps}.")
    return _shifted(1.0 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps, shift)


def tail_sigmas(num_steps: int, shift: float, start: int, ratio: float) -> Tensor:
    """Flash's tail: (n+1,) float64 from σ_start to 0, linear in s, then shifted; n of `num_tail_steps(T−start, ratio)`.

    Raises ValueError if `start` is no step of the grid.
    """
    _check_start(start, num_steps)
    num_tail = num_tail_steps(num_steps - start, ratio)
    return _shifted(_tail_times(num_steps, start, num_tail), shift)


def regrid_tail(sigmas: Tensor, start: int, num_steps: int) -> Tensor:
    """`num_steps` steps from σ_start to 0 on any decreasing grid σ (T+1,): (num_steps+1,) float64.

    The grid is undone by the shift that puts σ_start at s = 1−start/T, interpolated linearly in s, and shifted again:
    decreasing for every decreasing grid, and equal to `tail_sigmas` on those of `flow_sigmas`.
    Raises ValueError if `start` is no step of the grid, or `num_steps` is below 1.
    """
    num_grid_steps = len(sigmas) - 1
    _check_start(start, num_grid_steps)
    if num_steps < 1:
        raise ValueError(f"A tail needs at least one step, not {num_steps}.")
    grid = sigmas.to(device="cpu", dtype=torch.float64)
    shift = _local_shift(grid, start)
    # Points of the tail as positions on the grid: uniform in s is uniform in the index.
    position = start + (num_grid_steps - start) * torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    below = position.floor().long().clamp(max=num_grid_steps - 1)
    unshifted = _shifted(grid, 1.0 / shift)
    tail = _shifted(torch.lerp(unshifted[below], unshifted[below + 1], position - below), shift)
    tail[0], tail[-1] = grid[start], 0.0
    return tail


def _shifted(s: Tensor, shift: float) -> Tensor:
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"The time shift must be a positive number, not {shift}.")
    # 1+(shift−1)·s written so that s = 1 gives exactly 1 for every shift.
    return shift * s / (shift * s + (1.0 - s))


def _tail_times(num_steps: int, start: int, num_tail: int) -> Tensor:
    return (1.0 - start / num_steps) * (1.0 - torch.arange(num_tail + 1, dtype=torch.float64) / num_tail)


def _local_shift(grid: Tensor, start: int) -> float:
    """The shift whose grid passes through the first point at or after `start` that lies strictly inside (0, 1)."""
    num_steps = len(grid) - 1
    for index in range(max(start, 1), num_steps):
        sigma, s = float(grid[index]), 1.0 - index / num_steps
        if 0.0 < sigma < 1.0:
            return sigma * (1.0 - s) / (s * (1.0 - sigma))
    return 1.0


def _check_start(start: int, num_steps: int) -> None:
    if not 0 <= start < num_steps:
        raise ValueError(f"The tail cannot start at step {start}: the grid has steps 0 to {num_steps - 1}.")
