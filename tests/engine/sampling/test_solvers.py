from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from engine.sampling.schedule import flow_sigmas, tail_sigmas
from engine.sampling.sde import clean_prediction, ode_step
from engine.sampling.solvers import (
    SOLVERS,
    DeisSolver,
    DpmSolver,
    History,
    Solver,
    UniPcSolver,
    largest_order,
    make_solver,
)
from engine.settings import SOLVER_TYPES, FlashSettings, SolverName

# diffusers' DEIS calls numpy on tensors, in ways that numpy wants to end.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

EVERY_SOLVER: list[Solver] = [
    make_solver(FlashSettings(solver=name, order=order, solver_type=variant))
    for name, variants in SOLVER_TYPES.items()
    for variant in variants or (None,)
    for order in (1, 2, 3)
]
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


def test_every_solver_name_has_a_solver_and_its_first_variant_is_the_usual_one():
    assert set(SOLVERS) == set(SOLVER_TYPES) == set(get_args(SolverName))
    assert make_solver(FlashSettings()) == DpmSolver(2, SOLVER_TYPES["dpmsolver++"][0])
    assert make_solver(FlashSettings(solver="unipc", order=3)) == UniPcSolver(3, SOLVER_TYPES["unipc"][0])
    assert make_solver(FlashSettings(solver="unipc", solver_type="bh1")) == UniPcSolver(2, "bh1")
    assert make_solver(FlashSettings(solver="deis", order=1)) == DeisSolver(1)


@pytest.mark.parametrize(
    ("solver", "slope"),
    [
        (UniPcSolver(1, "bh1"), 2), (UniPcSolver(1, "bh2"), 2), (UniPcSolver(2, "bh1"), 3), (UniPcSolver(2, "bh2"), 3),
        (UniPcSolver(3, "bh1"), 3), (UniPcSolver(3, "bh2"), 3),
        (DeisSolver(1), 1), (DeisSolver(2), 2), (DeisSolver(3), 2),
    ],
    ids=repr,
)  # fmt: skip
def test_the_error_of_diffusers_solvers_falls_as_stated(solver, slope):
    """On the linear velocity, from an exact state at σ = 0.9; the last step, to σ = 0, asks what is at σ = 0.2."""
    errors = []
    z = torch.tensor([[1.3, -0.8]], dtype=torch.float64)
    for num_steps in (80, 160, 320):
        grid = (*_grid(num_steps, before=0), 0.0)
        image = solver.integrate(
            lambda x, sigma: (x - _gaussian_clean(x, sigma)) / sigma, _exact(z, grid[0]), grid
        )
        errors.append(float((image - _gaussian_clean(_exact(z, 0.2), 0.2)).abs().max()))
    assert [math.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([slope] * 2, abs=0.1)


def _sine(x: Tensor, sigma: float) -> Tensor:
    return x.sin() + sigma


@pytest.mark.parametrize("num_steps", [1, 2, 9, 17])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_on_a_whole_grid_is_diffusers_own(order, solver_type, num_steps):
    """Through its public door, from noise to the image: the schedulers' grid may be given."""
    sigmas = flow_sigmas(num_steps, 3.0)
    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type=solver_type, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(sigmas=sigmas[:-1].numpy())
    states = [torch.randn((3, 2, 4), generator=torch.Generator().manual_seed(4))]
    for sigma, timestep in zip(sigmas.tolist(), scheduler.timesteps, strict=False):
        states.append(scheduler.step(_sine(states[-1], sigma), timestep, states[-1]).prev_sample)
    expected, last = states[-1], float(sigmas[-2])
    if solver_type == "bh1":
        assert expected.isnan().all(), "with B(h) = −h its formula has no value at σ = 0"
        expected = clean_prediction(states[-2], _sine(states[-2], last), last)
    actual = UniPcSolver(order, solver_type).integrate(_sine, states[0], tuple(sigmas.tolist()))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 9, 17])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_on_a_whole_grid_is_diffusers_own_and_goes_on_to_the_image(order, num_steps):
    """diffusers' grid for it repeats its last σ in place of 0, so what it returns is still noisy there."""
    scheduler = DEISMultistepScheduler(
        solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.set_timesteps(num_steps)
    # It begins at σ = 0.9997, where its first step, which we take by Euler's rule, keeps four digits in float32.
    scheduler.sigmas = scheduler.sigmas.double()
    sigmas = scheduler.sigmas.tolist()
    assert sigmas[-1] == sigmas[-2] > 0.1
    noise = torch.randn((3, 2, 4), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noisy = noise
    for sigma, timestep in zip(sigmas[:-2], scheduler.timesteps, strict=False):
        noisy = scheduler.step(_sine(noisy, sigma), timestep, noisy).prev_sample
    expected = clean_prediction(noisy, _sine(noisy, sigmas[-1]), sigmas[-1])
    torch.testing.assert_close(DeisSolver(order).integrate(_sine, noise, (*sigmas[:-1], 0.0)), expected)


@pytest.mark.parametrize("first", [0, 1, 6])
@pytest.mark.parametrize("solver", EVERY_SOLVER, ids=repr)
def test_a_tail_in_float32_agrees_with_the_same_in_float64(solver, first):
    """From noise itself (a rollout without a window), and from where a window leaves off."""
    latents = torch.randn((3, 2, 4), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tail = tuple(tail_sigmas(25, 3.0, first, 0.4).tolist())
    rounded = solver.integrate(_sine, latents.float(), tail)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), solver.integrate(_sine, latents, tail), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_unipc_is_warmed_like_dpm_solver_and_corrects_nothing_before_its_first_step(solver_type):
    """UniPC's second-order predictor in bh2 is DPM-Solver++'s midpoint; a two-step tail has nothing left to correct."""
    history = History()
    for number, sigma in enumerate((0.9, 0.8)):
        clean = torch.randn((2, 3), generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        history = history.add(sigma, clean)
    latents = torch.randn((2, 3), generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    tail = (_sine, latents, (0.7, 0.4, 0.0), history, 2)
    difference = UniPcSolver().integrate(*tail) - DpmSolver(2, solver_type).integrate(*tail)
    assert (float(difference.abs().max()) < 1e-12) == (solver_type == "midpoint")
    cold = UniPcSolver().integrate(_sine, latents, (0.7, 0.4, 0.0))
    assert float((UniPcSolver().integrate(*tail) - cold).abs().max()) > 1e-2


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("solver", EVERY_SOLVER, ids=repr)
def test_every_solver_asks_once_a_step_at_our_sigma_and_ends_at_the_image(solver, num_steps):
    """Faults 2 and 3 of the published code: a tail of n−1 steps that stops short of σ = 0, and rounded σ's."""
    image, noise = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(2))
    asked = []

    def to_the_image(latents: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return (latents - image) / sigma

    tail = tuple(tail_sigmas(25, 3.0, 25 - num_steps, 1.0).tolist())
    start = (1 - tail[0]) * image + tail[0] * noise
    torch.testing.assert_close(solver.integrate(to_the_image, start, tail), image, rtol=0, atol=1e-5)
    assert asked == list(tail[:-1])


@pytest.mark.parametrize("solver", EVERY_SOLVER, ids=repr)
def test_where_the_flow_is_straight_every_solver_is_on_it_at_each_step(solver):
    image, noise = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for end in (3, 5):
        tail = tuple(tail_sigmas(9, 3.0, 2, 1.0).tolist())[:end]
        start = (1 - tail[0]) * image + tail[0] * noise
        expected = (1 - tail[-1]) * image + tail[-1] * noise
        actual = solver.integrate(lambda x, s: noise - image, start, tail)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", EVERY_SOLVER, ids=repr)
def test_rows_do_not_touch_each_other(solver):
    latents = torch.randn((5, 2, 3), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    history = History()
    for number, sigma in enumerate((0.95, 0.9, 0.85)):
        clean = torch.randn((5, 2, 3), generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        history = history.add(sigma, clean)
    tail = tuple(tail_sigmas(9, 3.0, 3, 1.0).tolist())
    whole = solver.integrate(_sine, latents, tail, history, 3)
    for row in range(5):
        own = History(history.sigmas, tuple(clean[row : row + 1] for clean in history.cleans))
        alone = solver.integrate(_sine, latents[row : row + 1], tail, own, 3)
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", EVERY_SOLVER, ids=repr)
def test_a_velocity_in_low_precision_leaves_the_latents_theirs(solver):
    latents = torch.randn((2, 2, 3), generator=torch.Generator().manual_seed(6))
    tail = tuple(tail_sigmas(9, 3.0, 3, 1.0).tolist())
    assert solver.integrate(lambda x, s: _sine(x, s).bfloat16(), latents, tail).dtype == torch.float32
