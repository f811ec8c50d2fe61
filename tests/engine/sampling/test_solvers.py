from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from engine.sampling.schedule import flow_sigmas
from engine.sampling.sde import clean_prediction, ode_step
from engine.sampling.solvers import DpmSolver, History, largest_order

ORDERS = [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")]


def _gaussian_clean(latents: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for x0 of N(0.5, 0.6²): the clean prediction of a linear velocity."""
    variance = (1 - sigma) ** 2 * 0.36 + sigma**2
    return 0.5 + (1 - sigma) * 0.36 / variance * (latents - (1 - sigma) * 0.5)


def _exact(z: Tensor, sigma: float) -> Tensor:
    """The flow's trajectory through that Gaussian: each point keeps its quantile."""
    return (1 - sigma) * 0.5 + math.sqrt((1 - sigma) ** 2 * 0.36 + sigma**2) * z


def _grid(num_steps: int, before: int) -> list[float]:
    """σ from 0.9 to 0.2, uniform in λ, with `before` more points above it to warm the history."""
    top, bottom = (math.log((1 - sigma) / sigma) for sigma in (0.9, 0.2))
    lambdas = [top + (bottom - top) * i / num_steps for i in range(-before, num_steps + 1)]
    return [1 / (1 + math.exp(value)) for value in lambdas]


def _error(order: int, solver_type: str, num_steps: int) -> float:
    solver = DpmSolver(order, solver_type)
    z = torch.tensor([[1.3, -0.8]], dtype=torch.float64)
    grid = _grid(num_steps, before=2)
    history = History()
    for sigma in grid[:2]:
        history = history.add(sigma, _gaussian_clean(_exact(z, sigma), sigma))
    latents = _exact(z, grid[2])
    for sigma, sigma_next in pairwise(grid[2:]):
        history = history.add(sigma, _gaussian_clean(latents, sigma))
        latents = solver.step(latents, history, sigma_next)
    return float((latents - _exact(z, 0.2)).abs().max())


def _slopes(order: int, solver_type: str, steps: tuple[int, ...]) -> list[float]:
    """Of log error over log steps, on a linear velocity, with a history warmed by the exact trajectory."""
    errors = [_error(order, solver_type, num_steps) for num_steps in steps]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
def test_the_error_falls_with_the_order_of_the_solver(order, solver_type):
    assert _slopes(order, solver_type, (160, 320, 640)) == pytest.approx([order, order], abs=0.08)


def test_the_third_order_as_published_falls_faster_than_the_second_while_steps_are_few():
    """Its second-derivative term is half the expansion's, so the slope goes from 3 to 2 as steps become many."""
    assert _slopes(3, "midpoint", (10, 20)) == pytest.approx([3], abs=0.25)
    assert _slopes(3, "midpoint", (320, 640)) == pytest.approx([2], abs=0.08)


def test_a_first_order_step_keeps_predicted_image_and_predicted_noise():
    """x' = (1−σ')·x̂0 + σ'·x̂1: what DDIM and Euler's step do, so both agree."""
    latents, velocity = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sigma, sigma_next in [(1.0, 0.8), (0.7, 0.3), (0.4, 0.0)]:
        history = History().add(sigma, clean_prediction(latents, velocity, sigma))
        stepped = DpmSolver(3).step(latents, history, sigma_next)
        torch.testing.assert_close(stepped, ode_step(latents, velocity, sigma, sigma_next), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("order", "solver_type"), ORDERS)
def test_the_step_to_zero_is_the_clean_prediction(order, solver_type):
    history = History()
    for sigma in (0.6, 0.4, 0.2):
        history = history.add(sigma, torch.full((1, 2), sigma))
    stepped = DpmSolver(order, solver_type).step(torch.full((1, 2), 3.0), history, 0.0)
    torch.testing.assert_close(stepped, torch.full((1, 2), 0.2), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("order", "solver_type"), ORDERS)
def test_a_constant_prediction_is_reached_by_any_order(order, solver_type):
    """Where the flow is straight, every order is exact: x(σ) = (1−σ)·x0 + σ·ε."""
    image, noise = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sigmas = tuple(flow_sigmas(7, 3.0).tolist())
    latents = DpmSolver(order, solver_type).integrate(lambda x, s: noise - image, noise, sigmas[:5])
    torch.testing.assert_close(latents, (1 - sigmas[4]) * image + sigmas[4] * noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("order", "solver_type"), ORDERS)
@pytest.mark.parametrize("num_steps", [9, 17])
def test_a_warm_history_gives_what_diffusers_gives(order, solver_type, num_steps):
    """The last steps of a grid, after predictions made elsewhere, against diffusers' scheduler in the same state."""
    sigmas = flow_sigmas(num_steps, 3.0)
    start = num_steps - 5
    generator = torch.Generator().manual_seed(3)
    cleans = torch.randn((3, 2, 4), generator=generator)
    latents = torch.randn((2, 4), generator=generator)

    def velocity(x: Tensor, sigma: float) -> Tensor:
        return x.sin() + sigma

    scheduler = DPMSolverMultistepScheduler(
        solver_order=order, solver_type=solver_type, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    # Its own grid is rounded to thousandths, so it is given ours, and the state a warm start leaves it in.
    scheduler.num_inference_steps, scheduler.timesteps, scheduler.sigmas = num_steps, torch.arange(num_steps), sigmas
    scheduler.model_outputs, scheduler.lower_order_nums = list(cleans[3 - order :]), order
    scheduler._step_index = start
    expected = latents
    for index in range(start, num_steps):
        expected = scheduler.step(velocity(expected, float(sigmas[index])), index, expected).prev_sample

    history = History(tuple(sigmas[start - 3 : start].tolist()), tuple(cleans))
    solver = DpmSolver(order, solver_type)
    actual = solver.integrate(velocity, latents, tuple(sigmas[start:].tolist()), history, steps_before=start)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_order_falls_at_the_end():
    assert [largest_order(step, 5) for step in range(5)] == [3, 3, 3, 2, 1]
    assert [largest_order(step, 15) for step in range(12, 15)] == [3, 3, 1]


def test_a_history_keeps_the_three_newest_and_branches_by_rows():
    history = History()
    for number in range(5):
        history = history.add(0.9 - 0.1 * number, torch.tensor([[float(number)], [10.0 + number]]))
    assert history.sigmas == pytest.approx((0.7, 0.6, 0.5))
    repeated = history.repeat(2)
    assert repeated.sigmas == history.sigmas
    assert repeated.cleans[-1].flatten().tolist() == [4, 4, 14, 14]
