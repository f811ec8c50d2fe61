"""Palate's mathematics against the same formulas written out once more, in numpy's float64, at random settings.

The figures of test_mixgrpo_reference.py hold at one grid and one shape; these hold at any number of steps, shift, η,
shape and window. Nothing is shared with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from engine.sampling.rollout import make_plan
from engine.sampling.sde import KERNELS, clean_prediction, log_prob, make_kernel
from engine.sampling.solvers import DpmSolver
from engine.sampling.window import window_start
from engine.settings import FlashSettings, KernelName, SamplingSettings, WindowSettings

Array = NDArray[np.float64]
SHIFTS = st.floats(0.2, 8.0)
SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


def published_grid(num_steps: int, shift: float) -> Array:
    """σ_i = shift·s/(1 + (shift−1)·s) of s from 1 to 0."""
    s = np.linspace(1.0, 0.0, num_steps + 1)
    # 1 + (shift−1) may miss the shift by a last digit, and σ = 1 with it.
    return np.where(s == 1, 1.0, shift * s / (1 + (shift - 1) * s))


@st.composite
def steps(draw: st.DrawFn) -> tuple[Array, int, float, list[Array]]:
    """A grid, a step of it that may be stochastic, η, and latents, velocity and next latents of some shape."""
    sigmas = published_grid(draw(st.integers(3, 80)), draw(SHIFTS))
    step = draw(st.integers(0, len(sigmas) - 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    shape = draw(SHAPES)
    return sigmas, step, draw(st.floats(0.05, 1.0)), [rng.standard_normal(shape) for _ in range(3)]


def _close(actual: Tensor, expected: Array | float) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), wanted, rtol=1e-9, atol=1e-11)


Density = Callable[[Array], Array]
"""The log-probability (B,) of next latents (B, …)."""
WrittenOut = Callable[[Array, Array, float, float, float, float], tuple[Array, float, Density]]
"""(x, v, σ, σ', σ₁, η) → mean, std and log-probability of the step."""


def _gaussian(mean: Array, std: float) -> Density:
    """The Gaussian's log-density with all its terms, averaged over all but the first dimension."""

    def density(value: Array) -> Array:
        terms = -((value - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))
        return terms.reshape(len(mean), -1).mean(axis=1)

    return density


def flow_sde(
    x: Array, v: Array, sigma: float, sigma_next: float, sigma_first: float, eta: float
) -> tuple[Array, float, Density]:
    dt = sigma_next - sigma
    deviation = eta * np.sqrt(sigma / (1 - (sigma_first if sigma == 1 else sigma)))
    mean = x * (1 + deviation**2 / (2 * sigma) * dt) + v * (1 + deviation**2 * (1 - sigma) / (2 * sigma)) * dt
    std = float(deviation * np.sqrt(-dt))
    return mean, std, _gaussian(mean, std)


def dance_sde(
    x: Array, v: Array, sigma: float, sigma_next: float, sigma_first: float, eta: float
) -> tuple[Array, float, Density]:
    dt = sigma_next - sigma
    score = -(x - (x - sigma * v) * (1 - sigma)) / sigma**2
    mean = x + dt * v - 0.5 * eta**2 * score * dt
    std = float(eta * np.sqrt(-dt))
    return mean, std, _gaussian(mean, std)


def cps(
    x: Array, v: Array, sigma: float, sigma_next: float, sigma_first: float, eta: float
) -> tuple[Array, float, Density]:
    std = float(sigma_next * np.sin(eta * np.pi / 2))
    clean, noise = x - sigma * v, x + (1 - sigma) * v
    mean = (1 - sigma_next) * clean + np.sqrt(np.maximum(sigma_next**2 - std**2, 0.0)) * noise
    return mean, std, lambda value: -((value - mean) ** 2).reshape(len(mean), -1).mean(axis=1)


WRITTEN_OUT: dict[KernelName, WrittenOut] = {"flow_sde": flow_sde, "dance_sde": dance_sde, "cps": cps}


@pytest.mark.parametrize("name", sorted(KERNELS))
@given(case=steps())
def test_kernels(name, case):
    assert name in WRITTEN_OUT, "A new kernel's formula is to be written out once more in this file."
    sigmas, step, eta, (x, v, following) = case
    sigma, sigma_next, sigma_first = float(sigmas[step]), float(sigmas[step + 1]), float(sigmas[1])
    mean, std, density = WRITTEN_OUT[name](x, v, sigma, sigma_next, sigma_first, eta)
    ours = make_kernel(name, eta).transition(torch.from_numpy(x), torch.from_numpy(v), sigma, sigma_next, sigma_first)
    _close(ours.mean, mean)
    _close(ours.std, std)
    # The density itself: rounding of the mean, over the std, must not hide in it.
    _close(log_prob(ours, torch.from_numpy(following)), density(following))
    _close(clean_prediction(torch.from_numpy(x), torch.from_numpy(v), sigma), x - sigma * v)


def toy_velocity(x: Array, sigma: float) -> Array:
    """A bounded one, which mixes the last dimension."""
    return np.tanh(x) * (1 - sigma) + 0.3 * np.flip(x, -1) * sigma


def dpm_solver(x: Array, sigmas: Array, order: int, heun: bool) -> Array:
    """Multistep DPM-Solver++ in λ, h and ratios of steps, as its paper and diffusers write it."""
    num_steps = len(sigmas) - 1
    lambdas = [math.inf if s == 0 else -math.inf if s == 1 else math.log((1 - s) / s) for s in sigmas]
    cleans: list[Array] = []
    for i in range(num_steps):
        cleans.append(x - sigmas[i] * toy_velocity(x, sigmas[i]))
        allowed = 1 if i == num_steps - 1 else 2 if i == num_steps - 2 and num_steps < 15 else 3
        h, alpha = lambdas[i + 1] - lambdas[i], 1 - sigmas[i + 1]
        e = math.exp(-h) - 1
        result = sigmas[i + 1] / sigmas[i] * x - alpha * e * cleans[i]
        use = min(order, allowed, i + 1)
        if use >= 2:
            r0 = (lambdas[i] - lambdas[i - 1]) / h
            d1 = (cleans[i] - cleans[i - 1]) / r0
        if use == 2:
            result += alpha * (e / h + 1) * d1 if heun else -0.5 * alpha * e * d1
        if use == 3:
            r1 = (lambdas[i - 1] - lambdas[i - 2]) / h
            d1_older = (cleans[i - 1] - cleans[i - 2]) / r1
            share = 0.0 if math.isinf(r1) else r0 / (r0 + r1)
            first = d1 + share * (d1 - d1_older)
            second = (d1 - d1_older) / (r0 + r1)
            result += alpha * (e / h + 1) * first - alpha * ((e + h) / h**2 - 0.5) * second
        x = result
    return x


@given(st.integers(1, 40), SHIFTS, st.sampled_from([(1, False), (2, False), (2, True), (3, False), (3, True)]),
       SHAPES, st.integers(0, 2**31))  # fmt: skip
def test_dpm_solver(num_steps, shift, variant, shape, seed):
    """To 1e-9 in float64 and to 1e-5 in float32, through the whole grid."""
    order, heun = variant
    x = np.random.default_rng(seed).standard_normal(shape)
    sigmas = published_grid(num_steps, shift)
    expected = torch.from_numpy(dpm_solver(x, sigmas, order, heun))

    def velocity(latents: Tensor, sigma: float) -> Tensor:
        return latents.tanh() * (1 - sigma) + 0.3 * latents.flip(-1) * sigma

    solver, grid = DpmSolver(order, "heun" if heun else "midpoint"), tuple(sigmas.tolist())
    torch.testing.assert_close(solver.integrate(velocity, torch.from_numpy(x), grid), expected, rtol=1e-9, atol=1e-9)
    rounded = solver.integrate(velocity, torch.from_numpy(x).float(), grid)
    torch.testing.assert_close(rounded.double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(3, 80), SHIFTS, st.integers(1, 100), st.data())
def test_the_grid_and_the_flash_tail(num_steps, shift, percent, data):
    size = data.draw(st.integers(1, num_steps - 2))
    start = data.draw(st.integers(0, num_steps - 2 - size))
    plan = make_plan(
        SamplingSettings(num_steps=num_steps, shift=shift),
        FlashSettings(enabled=True, ratio=percent / 100), start, size,
    )  # fmt: skip
    _close(torch.tensor(plan.sigmas, dtype=torch.float64), published_grid(num_steps, shift))
    left = num_steps - start - size
    num_tail = max(1, math.ceil(Fraction(percent, 100) * left))
    s = np.linspace(left / num_steps, 0.0, num_tail + 1)
    _close(torch.tensor(plan.tail, dtype=torch.float64), shift * s / (1 + (shift - 1) * s))


@given(st.integers(4, 60), st.data())
def test_a_moving_window_is_where_the_published_counter_puts_it(num_steps, data):
    """Counted iteration by iteration: stay for a position's share, then move by the stride, and wrap past the end."""
    size = data.draw(st.integers(1, num_steps - 3))
    most, fewest = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    window = WindowSettings(
        strategy=data.draw(st.sampled_from(["progressive", "decay", "exp_decay"])),
        size=size, stride=data.draw(st.integers(1, 4)), start=data.draw(st.integers(0, num_steps - 2 - size)),
        iterations_per_position=most, min_iterations_per_position=fewest,
    )  # fmt: skip

    def stay(position: int) -> int:
        if window.strategy == "decay":
            done = position / (num_steps - 2)
            return max(int(most * (1 - done) + fewest * done), fewest)
        if window.strategy == "exp_decay":
            return math.ceil(most * math.exp(-0.1 * max(0, position - 13)))
        return most

    position, stayed = window.start, 0
    for iteration in range(150):
        if stayed == stay(position):
            position, stayed = position + window.stride, 0
            if position > num_steps - 2 - size:
                position = window.start
        assert window_start(window, num_steps, 0, iteration) == position
        stayed += 1
