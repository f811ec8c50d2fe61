from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.sampling.schedule import flow_sigmas
from engine.sampling.sde import KERNELS, Cps, DanceSde, FlowSde, Transition, draw, log_prob, make_kernel, ode_step
from engine.settings import KernelName

NAMES = sorted(KERNELS)
# Whatever the step, its noise is a share of σ': it has no small steps to be a stochastic differential equation in.
NO_SDE = {"cps"}


def _pair(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents, velocity = torch.randn((2, *shape), generator=generator, dtype=torch.float64).to(dtype)
    return latents, velocity


def test_every_kernel_name_has_a_kernel():
    assert set(KERNELS) == set(get_args(KernelName))
    assert make_kernel("cps", 0.5) == Cps(0.5)
    assert make_kernel("flow_sde", 0.7) == FlowSde(0.7)
    assert make_kernel("dance_sde", 0.3) == DanceSde(0.3)


@pytest.mark.parametrize(("sigma", "sigma_next", "eta"), [(1.0, 0.9, 0.5), (0.8, 0.6, 0.7), (0.3, 0.05, 1.0)])
def test_cps_by_hand(sigma, sigma_next, eta):
    """Plain arithmetic on one number at a time: no reference figures of CPS exist."""
    latents, velocity = _pair((2, 3))
    following = _pair((2, 3), seed=1)[0]
    transition = Cps(eta).transition(latents, velocity, sigma, sigma_next, 0.99)
    std = sigma_next * math.sin(eta * math.pi / 2)
    assert float(transition.std) == pytest.approx(std, rel=1e-14)
    for row in range(2):
        squares = 0.0
        for column in range(3):
            x, v = float(latents[row, column]), float(velocity[row, column])
            clean, noise = x - sigma * v, x + (1 - sigma) * v
            # σ'²−s² = σ'²·cos²: the same coefficient by another road.
            mean = (1 - sigma_next) * clean + sigma_next * math.cos(eta * math.pi / 2) * noise
            assert float(transition.mean[row, column]) == pytest.approx(mean, rel=1e-9, abs=1e-9)
            squares += (float(following[row, column]) - mean) ** 2
        assert float(log_prob(transition, following)[row]) == pytest.approx(-squares / 3, rel=1e-9)


@given(st.floats(0.05, 0.95), st.floats(0.1, 0.9), st.floats(0.05, 1.0), st.integers(0, 100))
def test_flow_sde_is_the_dance_sde_whose_noise_grows_with_sigma(sigma, fraction, eta, seed):
    """Both are x + (v − ½s²·score)·dt: with s = η√(σ/(1−σ)) they must agree, though written differently."""
    latents, velocity = _pair((2, 4), seed)
    sigma_next = sigma * fraction
    flow = FlowSde(eta).transition(latents, velocity, sigma, sigma_next, 0.99)
    dance = DanceSde(eta * math.sqrt(sigma / (1 - sigma))).transition(latents, velocity, sigma, sigma_next, 0.99)
    torch.testing.assert_close(flow.mean, dance.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow.std, dance.std, rtol=1e-12, atol=0)


def test_flow_sde_at_the_start_uses_the_second_sigma():
    latents, velocity = _pair((2, 4))
    transition = FlowSde(0.7).transition(latents, velocity, 1.0, 0.9, 0.9)
    # s² = η²/(1−0.9), so std = s·√0.1 = η, and the drift is s²/2·0.1 = η²/2.
    assert float(transition.std) == pytest.approx(0.7, rel=1e-12)
    torch.testing.assert_close(transition.mean, latents * (1 - 0.7**2 / 2) - 0.1 * velocity, rtol=1e-9, atol=1e-12)
    # A grid that passed through float32 may start a hair below 1: the same, not a blow-up.
    nearly = FlowSde(0.7).transition(latents, velocity, 1.0 - 6e-8, 0.9, 0.9)
    torch.testing.assert_close(nearly.mean, transition.mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma", [1.0, 0.6])
def test_without_noise_every_kernel_is_the_ode(name, sigma):
    latents, velocity = _pair((2, 3, 4))
    ode = ode_step(latents, velocity, sigma, 0.5)
    errors = []
    for eta in (1e-2, 1e-3):
        transition = make_kernel(name, eta).transition(latents, velocity, sigma, 0.5, 0.95)
        assert 0 < float(transition.std) < 4 * eta
        errors.append(float((transition.mean - ode).abs().max()))
    # The mean approaches the ODE's with η², the std with η.
    assert errors[1] == pytest.approx(errors[0] / 100, rel=1e-2)
    assert errors[1] < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 3), (1, 2)])
def test_log_probability_is_the_gaussian_averaged_over_all_but_the_batch(name, shape):
    """Fault 4 of the published code: DanceGRPO's loses its constant terms to a line break."""
    latents, velocity = _pair(shape)
    following = _pair(shape, seed=2)[0]
    transition = make_kernel(name, 0.4).transition(latents, velocity, 0.8, 0.7, 0.95)
    terms = torch.distributions.Normal(transition.mean, transition.std).log_prob(following)
    if not transition.normalised:
        terms = -(following - transition.mean).square()
    expected = terms.flatten(1).mean(1)
    torch.testing.assert_close(log_prob(transition, following), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_ratio_is_not_lost_in_the_size_of_a_log_probability(name):
    """Late in a fine grid with little noise, log-probabilities lie above 4, where a float32 takes steps of 5e-7."""
    latents, velocity = _pair((8, 2048), dtype=torch.float32)
    sigmas = flow_sigmas(100, 3.0).tolist()
    kernel = make_kernel(name, 0.05)
    transition = kernel.transition(latents, velocity, sigmas[90], sigmas[91], sigmas[1])
    following = draw(transition, _pair((8, 2048), seed=1, dtype=torch.float32)[0])
    exact = Transition(transition.mean.double(), transition.std.double(), transition.normalised)
    torch.testing.assert_close(log_prob(transition, following), log_prob(exact, following), rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_arithmetic_is_float32_at_least(name, dtype):
    latents, velocity = _pair((2, 4), dtype=dtype)
    at_least = torch.float64 if dtype == torch.float64 else torch.float32
    transition = make_kernel(name, 0.4).transition(latents, velocity, 0.8, 0.7, 0.95)
    assert transition.mean.dtype == transition.std.dtype == at_least
    assert transition.std.shape == ()
    assert log_prob(transition, latents).dtype == torch.float64
    assert draw(transition, latents).dtype == at_least
    assert ode_step(latents, velocity, 0.8, 0.7).dtype == at_least
    exact = make_kernel(name, 0.4).transition(latents.double(), velocity.double(), 0.8, 0.7, 0.95)
    torch.testing.assert_close(transition.mean.double(), exact.mean, rtol=1e-6, atol=1e-6)


def test_a_draw_is_mean_plus_noise_times_std():
    mean, noise = _pair((2, 3))
    drawn = draw(Transition(mean, torch.tensor(0.25, dtype=torch.float64)), noise)
    torch.testing.assert_close(drawn, mean + noise / 4, rtol=0, atol=0)


def _gaussian_velocity(latents: Tensor, sigma: float, mean: float = 1.5, std: float = 0.4) -> Tensor:
    """E[ε − x0 | x] for x0 of N(mean, std²): exact."""
    variance = (1 - sigma) ** 2 * std**2 + sigma**2
    slope = (sigma - (1 - sigma) * std**2) / variance
    return -mean + slope * (latents - (1 - sigma) * mean)


def _step(name: str, eta: float, latents: Tensor, sigmas: list[float], step: int, std: float) -> Transition:
    """A sampler's step towards N(1.5, std²); the last, and every step of "ode", is Euler's."""
    sigma, sigma_next = sigmas[step : step + 2]
    velocity = _gaussian_velocity(latents, sigma, std=std)
    if name == "ode" or step == len(sigmas) - 2:
        return Transition(ode_step(latents, velocity, sigma, sigma_next), torch.zeros((), dtype=torch.float64))
    return make_kernel(name, eta).transition(latents, velocity, sigma, sigma_next, sigmas[1])


def _marginals(name: str, eta: float, num_steps: int, std: float = 0.4) -> list[tuple[float, float]]:
    """Mean and std at each σ of the shifted grid, from N(0, 1), without sampling.

    The velocity is affine in x, so each step's mean is a·x + b; a and b are read off at x = 0 and x = 1.
    """
    sigmas = flow_sigmas(num_steps, 3.0).tolist()
    probes = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    marginals = [(0.0, 1.0)]
    for step in range(num_steps):
        transition = _step(name, eta, probes, sigmas, step, std)
        b, a = float(transition.mean[0]), float(transition.mean[1] - transition.mean[0])
        mean, spread = marginals[-1]
        marginals.append((a * mean + b, math.hypot(a * spread, float(transition.std))))
    return marginals


@pytest.mark.parametrize("name", ["ode", *(name for name in NAMES if name not in NO_SDE)])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_samplers_end_in_the_gaussian_they_aim_at_as_steps_get_small(name, eta):
    """Mean exactly 1.5 with any number of steps; the std's error falls like 1/T."""
    ends = [_marginals(name, eta, num_steps)[-1] for num_steps in (200, 400, 800)]
    assert [mean for mean, _ in ends] == pytest.approx([1.5] * 3, abs=1e-9)
    errors = [abs(std - 0.4) for _, std in ends]
    assert errors[0] < 0.01
    assert all(fine < 0.55 * coarse for coarse, fine in pairwise(errors))


def test_cps_ends_in_the_gaussian_when_its_noise_falls_with_the_step():
    """Its noise is a share of σ' whatever the step: η has to fall like √dt, or the images lose some of their spread."""
    ends = [_marginals("cps", 1.5 / math.sqrt(num_steps), num_steps)[-1] for num_steps in (200, 400, 800)]
    assert [mean for mean, _ in ends] == pytest.approx([1.5] * 3, abs=1e-9)
    errors = [abs(std - 0.4) for _, std in ends]
    assert errors[0] < 0.01
    assert all(fine < 0.55 * coarse for coarse, fine in pairwise(errors))
    assert _marginals("cps", 0.5, 800)[-1][1] == pytest.approx(0.366, abs=1e-3)


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [3, 25])
def test_cps_preserves_its_coefficients_at_every_step(eta, num_steps):
    """Where one image is the whole target, x̂0 and x̂1 are exact, and x_σ is N((1−σ)·x0, σ²) for any η and any T."""
    sigmas = flow_sigmas(num_steps, 3.0).tolist()
    expected = [((1 - sigma) * 1.5, sigma) for sigma in sigmas]
    for actual, wanted in zip(_marginals("cps", eta, num_steps, std=0.0), expected, strict=True):
        assert actual == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_a_whole_sampler_is_the_ode(name):
    ode, nearly = _marginals("ode", 0.0, 25), _marginals(name, 1e-4, 25)
    for actual, expected in zip(nearly, ode, strict=True):
        assert actual == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["ode", *NAMES])
@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_drawn_samples_have_the_marginals(name, eta):
    """By Monte Carlo through `draw`: mean and std within four standard errors of those worked out above."""
    generator, num_samples = torch.Generator().manual_seed(5), 4000
    sigmas = flow_sigmas(50, 3.0).tolist()
    latents = torch.randn((num_samples, 1), generator=generator, dtype=torch.float64)
    for step in range(50):
        transition = _step(name, eta, latents, sigmas, step, 0.4)
        latents = draw(transition, torch.randn(latents.shape, generator=generator, dtype=torch.float64))
    mean, std = _marginals(name, eta, 50)[-1]
    assert float(latents.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(num_samples))
    assert float(latents.std()) == pytest.approx(std, abs=4 * std / math.sqrt(2 * num_samples))
