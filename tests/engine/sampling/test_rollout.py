from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.sampling.rollout import Plan, Rollout, Velocity, make_plan, rollout, sample_ode
from engine.sampling.schedule import flow_sigmas, num_tail_steps, regrid_tail
from engine.sampling.sde import KERNELS, Kernel, log_prob, make_kernel
from engine.sampling.solvers import DpmSolver, History
from engine.settings import FlashSettings, SamplingSettings, SolverName

PROMPTS, GROUP, SHAPE = 3, 4, (2, 3, 3)
SAMPLING = SamplingSettings(num_steps=10)
FLASH, NO_FLASH = FlashSettings(enabled=True), FlashSettings()
TAILS = {"euler": NO_FLASH} | {
    f"{name}-{order}": FlashSettings(enabled=True, solver=name, order=order)
    for name in get_args(SolverName)
    for order in (1, 2, 3)
}

# diffusers' DEIS calls numpy on tensors, in a way that numpy wants to end.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


class Policy(nn.Module):
    """A small network in place of the transformer, which notes each call's σ, rows and prompts."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.prompts = nn.Embedding(PROMPTS, 8, dtype=dtype)
            first, last = nn.Linear(18 + 8 + 1, 32, dtype=dtype), nn.Linear(32, 18, dtype=dtype)
            self.layers = nn.Sequential(first, nn.Tanh(), last)
        self.calls: list[tuple[float, int, list[int]]] = []

    def forward(self, latents: Tensor, sigma: float, prompt_index: Tensor) -> Tensor:
        self.calls.append((sigma, len(latents), prompt_index.tolist()))
        assert prompt_index.dtype == torch.long
        column = latents.new_full((len(latents), 1), sigma)
        features = torch.cat([latents.flatten(1), self.prompts(prompt_index), column], dim=1)
        return self.layers(features).view_as(latents)


def _elementwise(latents: Tensor, sigma: float, prompt_index: Tensor) -> Tensor:
    """A velocity with no arithmetic across rows, so the size of the batch cannot change a bit of it."""
    return (latents * (1 + prompt_index.view(-1, 1, 1, 1))).sin() + sigma


def _noise(rows: int = PROMPTS, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((rows, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _plan(start: int = 2, flash: FlashSettings = NO_FLASH, size: int = 3) -> Plan:
    return make_plan(SAMPLING, flash, start, size)


def _run(
    velocity: Velocity,
    plan: Plan,
    *,
    kernel: Kernel | None = None,
    noise: Tensor | None = None,
    seed: int = 7,
    shared_prefix: bool = True,
    micro_batch: int = 100,
) -> Rollout:
    return rollout(
        velocity,
        _noise() if noise is None else noise,
        PROMPTS,
        GROUP,
        plan,
        kernel or make_kernel("flow_sde", 0.7),
        torch.Generator().manual_seed(seed),
        shared_prefix=shared_prefix,
        micro_batch=micro_batch,
    )


@pytest.mark.parametrize("name", sorted(KERNELS))
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("flash", [NO_FLASH, FLASH], ids=["euler", "flash"])
def test_the_ratio_is_one_before_the_first_update(name, start, flash):
    """The training path, from stored float32 states and in other batches, finds the log-probability it sampled with."""
    policy, kernel, plan = Policy(), make_kernel(name, 0.5), _plan(start, flash)
    drawn = _run(policy, plan, kernel=kernel, micro_batch=5)
    images = torch.arange(PROMPTS * GROUP)
    for position, (sigma, sigma_next) in enumerate(plan.window_steps):
        for rows in images[torch.randperm(len(images), generator=torch.Generator().manual_seed(position))].split(7):
            latents = drawn.states[position, rows]
            velocity = policy(latents, sigma, rows // GROUP)
            transition = kernel.transition(latents, velocity, sigma, sigma_next, plan.sigma_first)
            new = log_prob(transition, drawn.states[position + 1, rows])
            ratio = (new - drawn.log_probs[position, rows]).exp()
            torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6)
    assert (drawn.log_probs.dtype, drawn.states.dtype) == (torch.float64, torch.float32)
    assert drawn.log_probs.shape == (3, PROMPTS * GROUP)
    assert drawn.states.shape == (4, PROMPTS * GROUP, *SHAPE)
    assert drawn.latents.shape == (PROMPTS * GROUP, *SHAPE)
    assert not (drawn.latents.requires_grad or drawn.states.requires_grad or drawn.log_probs.requires_grad)


@pytest.mark.parametrize("flash", TAILS.values(), ids=TAILS)
def test_a_shared_prefix_changes_nothing_but_the_cost(flash):
    """Fault 7 of the published code: the prefix, the same for a whole group, is recomputed for each image."""
    plan = _plan(4, flash, size=1)
    shared, apart = _run(_elementwise, plan), _run(_elementwise, plan, shared_prefix=False)
    assert torch.equal(shared.latents, apart.latents)
    assert torch.equal(shared.states, apart.states)
    assert torch.equal(shared.log_probs, apart.log_probs)
    assert apart.num_velocities - shared.num_velocities == 4 * PROMPTS * (GROUP - 1)
    policy = Policy(torch.float64)
    noise = _noise(dtype=torch.float64)
    torch.testing.assert_close(
        _run(policy, plan, noise=noise).latents,
        _run(policy, plan, noise=noise, shared_prefix=False).latents,
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("flash", TAILS.values(), ids=TAILS)
def test_micro_batches_change_nothing(flash):
    whole = _run(_elementwise, _plan(flash=flash))
    for micro_batch in (1, 5):
        parts = _run(_elementwise, _plan(flash=flash), micro_batch=micro_batch)
        assert torch.equal(whole.latents, parts.latents)
        assert torch.equal(whole.log_probs, parts.log_probs)
        assert whole.num_velocities == parts.num_velocities
    policy = Policy()
    _run(policy, _plan(flash=flash), micro_batch=5)
    assert max(rows for _, rows, _ in policy.calls) == 5


def test_noise_of_its_own_for_each_image():
    noise = _noise(PROMPTS * GROUP)
    drawn = _run(_elementwise, _plan(2), noise=noise, shared_prefix=False)
    expected = sample_ode(_elementwise, noise, _images(), _plan(2).sigmas[:3], 100)
    assert torch.equal(drawn.states[0], expected)
    # Shared noise gives every image of a group the same state at the window's start.
    shared = _run(_elementwise, _plan(2)).states[0].view(PROMPTS, GROUP, *SHAPE)
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert not torch.equal(shared[0, 0], shared[1, 0])


def _images() -> Tensor:
    return torch.arange(PROMPTS).repeat_interleave(GROUP)


def test_images_of_a_group_part_in_the_window():
    states = _run(_elementwise, _plan(2)).states[1].view(PROMPTS, GROUP, -1)
    distances = torch.cdist(states, states) + 100 * torch.eye(GROUP)
    assert float(distances.min()) > 0.1


def test_the_seed_decides_the_window_and_nothing_else_does():
    one, two, other = (_run(_elementwise, _plan(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.latents, two.latents)
    assert torch.equal(one.states[0], other.states[0])
    assert not torch.equal(one.states[1], other.states[1])


@pytest.mark.parametrize("flash", TAILS.values(), ids=TAILS)
def test_the_model_sees_every_sigma_as_it_is_and_every_prompt(flash):
    """Faults 3 and 8 of the published code: σ truncated to thousandths, and only prompt 0 of a batch handled."""
    policy, plan = Policy(), _plan(2, flash)
    _run(policy, plan)
    assert [sigma for sigma, _, _ in policy.calls] == [*plan.sigmas[:5], *plan.tail_grid[:-1]]
    assert any(sigma != int(1000 * sigma) / 1000 for sigma, _, _ in policy.calls)
    for _, _, prompts in policy.calls[:2]:
        assert prompts == [0, 1, 2]
    for _, _, prompts in policy.calls[2:]:
        assert prompts == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_without_flash_the_tail_is_eulers():
    drawn = _run(_elementwise, _plan(2))
    tail = sample_ode(_elementwise, drawn.states[-1], _images(), _plan(2).sigmas[5:], 100)
    assert torch.equal(drawn.latents, tail)


@pytest.mark.parametrize("ratio", [0.01, 0.4, 1.0])
@pytest.mark.parametrize("flash", TAILS.values(), ids=TAILS)
def test_a_tail_ends_at_the_image_and_not_short_of_it(flash, ratio):
    """Fault 2 of the published code: a tail of one point never reaches σ = 0, and the image stays noisy."""
    image = torch.linspace(-1, 1, 18).view(1, *SHAPE)

    def to_the_image(latents: Tensor, sigma: float, prompt_index: Tensor) -> Tensor:
        return (latents - image) / sigma

    plan = _plan(2, flash.model_copy(update={"ratio": ratio}))
    assert plan.tail_grid[-1] == 0.0
    drawn = _run(to_the_image, plan)
    torch.testing.assert_close(drawn.latents, image.expand_as(drawn.latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_flash_tail_is_warmed_by_the_newest_predictions_before_it(size):
    """Order 3 on a grid of 15 steps and more: two predictions of the window, or of the prefix where it is shorter."""
    flash = FlashSettings(enabled=True, order=3)
    plan = make_plan(SamplingSettings(), flash, 5, size)
    noise = _noise()
    drawn = _run(_elementwise, plan, noise=noise)
    history = History()
    for step in (plan.window_end - 2, plan.window_end - 1):
        sigma = plan.sigmas[step]
        state = noise.repeat_interleave(GROUP, dim=0)
        if step < plan.window_start:
            state = sample_ode(_elementwise, state, _images(), plan.sigmas[: step + 1], 100)
        else:
            state = drawn.states[step - plan.window_start]
        history = history.add(sigma, state - sigma * _elementwise(state, sigma, _images()))
    expected = DpmSolver(3).integrate(
        lambda latents, sigma: _elementwise(latents, sigma, _images()),
        drawn.states[-1],
        plan.tail_grid,
        history,
        steps_before=plan.window_end,
    )
    torch.testing.assert_close(drawn.latents, expected, rtol=1e-6, atol=1e-6)


def test_a_flash_tail_is_nearer_the_fine_solution_than_eulers_of_the_same_steps():
    """Second order, with its history warmed in the window: what Flash is for."""

    def to_a_gaussian(latents: Tensor, sigma: float, prompt_index: Tensor) -> Tensor:
        """The exact velocity of N(prompt, 1)."""
        mean = prompt_index.view(-1, 1, 1, 1)
        variance = (1 - sigma) ** 2 + sigma**2
        return (2 * sigma - 1) / variance * (latents - (1 - sigma) * mean) - mean

    plan = make_plan(SamplingSettings(), FLASH, 6, 4)
    drawn = _run(to_a_gaussian, plan, noise=_noise(dtype=torch.float64), kernel=make_kernel("flow_sde", 0.3))
    fine = tuple(plan.tail_grid[0] * (1 - i / 2000) for i in range(2001))
    truth = sample_ode(to_a_gaussian, drawn.states[-1], _images(), fine, 100)
    euler = sample_ode(to_a_gaussian, drawn.states[-1], _images(), plan.tail_grid, 100)
    assert 3 * float((drawn.latents - truth).abs().mean()) < float((euler - truth).abs().mean())


@given(st.integers(4, 30), st.data(), st.booleans(), st.booleans(), st.floats(0.05, 1.0))
def test_velocities_are_counted_as_the_formula_says(num_steps, data, flash, shared, ratio):
    num_prompts, group_size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    size = data.draw(st.integers(1, num_steps - 2))
    start = data.draw(st.integers(0, num_steps - 2 - size))
    plan = make_plan(SamplingSettings(num_steps=num_steps), FlashSettings(enabled=flash, ratio=ratio), start, size)
    rows = 0

    def velocity(latents: Tensor, sigma: float, prompt_index: Tensor) -> Tensor:
        nonlocal rows
        rows += len(latents)
        return -latents

    drawn = rollout(
        velocity,
        torch.ones(num_prompts, 2),
        num_prompts,
        group_size,
        plan,
        make_kernel("dance_sde", 0.3),
        torch.Generator().manual_seed(0),
        shared_prefix=shared,
        micro_batch=3,
    )
    num_tail = num_tail_steps(num_steps - start - size, ratio) if flash else num_steps - start - size
    images = num_prompts * group_size
    expected = start * (num_prompts if shared else images) + (size + num_tail) * images
    assert rows == drawn.num_velocities == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_loop_runs_in_float32_at_least_whatever_the_model_returns(dtype):
    def low_precision(latents: Tensor, sigma: float, prompt_index: Tensor) -> Tensor:
        assert latents.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        return latents.to(torch.bfloat16)

    drawn = _run(low_precision, _plan(flash=FLASH), noise=_noise(dtype=dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {drawn.latents.dtype, drawn.states.dtype, drawn.means.dtype} == {expected}
    assert drawn.log_probs.dtype == torch.float64


def test_plain_sampling_is_eulers_method_in_micro_batches():
    policy, noise = Policy(torch.float64), _noise(5, dtype=torch.float64)
    prompts = torch.tensor([2, 0, 1, 1, 0])
    sigmas = flow_sigmas(6, 3.0).tolist()
    expected = noise
    for i in range(6):
        expected = expected + policy(expected, sigmas[i], prompts) * (sigmas[i + 1] - sigmas[i])
    policy.calls.clear()
    drawn = sample_ode(policy, noise, prompts, sigmas, 2)
    torch.testing.assert_close(drawn, expected, rtol=1e-12, atol=1e-12)
    assert not drawn.requires_grad
    assert [rows for _, rows, _ in policy.calls] == [2, 2, 1] * 6


class TestPlans:
    def test_a_number_as_shift_gives_the_shifted_grid(self):
        plan = make_plan(SAMPLING, NO_FLASH, 1, 2)
        assert plan.sigmas == tuple(flow_sigmas(10, 3.0).tolist())
        assert (plan.window_start, plan.window_end, plan.num_steps, plan.solver) == (1, 3, 10, None)
        assert plan.tail_grid == plan.sigmas[3:]
        assert plan.window_steps == (plan.sigmas[1:3], plan.sigmas[2:4])

    def test_flash_brings_a_grid_from_the_windows_end_and_its_solver(self):
        flash = FlashSettings(enabled=True, ratio=0.4, order=3, solver_type="heun")
        plan = make_plan(SAMPLING, flash, 1, 2)
        assert plan.tail is not None and plan.solver is not None
        assert len(plan.tail) == 4  # ⌈0.4·7⌉ = 3 steps
        assert plan.tail[0] == plan.sigmas[3]
        assert (plan.solver.order, plan.solver.solver_type) == (3, "heun")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_models_own_grid(self, dtype):
        sampling = SamplingSettings(num_steps=5, shift="model")
        grid = torch.tensor([1.0, 0.95, 0.7, 0.5, 0.2, 0.0], dtype=dtype)
        plan = make_plan(sampling, FLASH, 1, 1, grid)
        assert plan.sigmas == tuple(grid.tolist())
        assert plan.tail == tuple(regrid_tail(grid, 2, 2).tolist())

    @pytest.mark.parametrize(
        ("grid", "message"),
        [
            (None, "brings no time grid"),
            (torch.tensor([1.0, 0.5, 0.0]), "must fall from at most 1 to 0 in 5 steps"),
            (torch.linspace(1, 0.1, 6), "must fall"),
            (torch.linspace(2, 0, 6), "must fall"),
            (torch.tensor([1.0, 0.9, 0.9, 0.5, 0.2, 0.0]), "must fall"),
        ],
    )
    def test_a_model_grid_that_is_none_is_refused(self, grid, message):
        with pytest.raises(ValueError, match=message):
            make_plan(SamplingSettings(num_steps=5, shift="model"), NO_FLASH, 1, 1, grid)

    @pytest.mark.parametrize(("start", "size"), [(-1, 2), (8, 2), (0, 10), (3, 0)])
    def test_the_last_step_is_never_stochastic(self, start, size):
        with pytest.raises(ValueError, match="never stochastic"):
            Plan(tuple(flow_sigmas(10, 3.0).tolist()), start, size)


@pytest.mark.parametrize(
    ("rows", "shared_prefix", "message"),
    [(5, False, "has 5 rows; it needs 3"), (5, True, "has 5 rows"), (12, True, "needs shared noise")],
)
def test_noise_of_another_shape_is_refused(rows, shared_prefix, message):
    with pytest.raises(ValueError, match=message):
        _run(_elementwise, _plan(), noise=_noise(rows), shared_prefix=shared_prefix)
