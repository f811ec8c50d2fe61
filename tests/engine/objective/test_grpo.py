from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.objective.grpo import grpo_loss, kl_to_base, normalised_log_ratio
from engine.sampling.sde import KERNELS, log_prob, make_kernel


def _doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_by_hand():
    # ρ = 1.5, 0.5, 1.5, 0.5, 1.05 with ε = 0.1: the worse of plain and clipped for each sign of A.
    ratios, advantages = _doubles(1.5, 0.5, 1.5, 0.5, 1.05), _doubles(2.0, 2.0, -2.0, -2.0, 3.0)
    terms = grpo_loss(ratios.log(), torch.zeros_like(ratios), advantages, 0.1)
    expected = [-2.2, -1.0, 3.0, 1.8, -3.15]
    assert float(terms.loss) == pytest.approx(sum(expected) / 5, rel=1e-12)
    torch.testing.assert_close(terms.ratio, ratios)
    assert float(terms.clipped_share) == pytest.approx(4 / 5)


def test_only_the_loss_carries_a_gradient():
    new = _doubles(0.1, -0.2).requires_grad_()
    terms = grpo_loss(new, _doubles(0.0, 0.0), _doubles(1.0, -1.0), 0.5)
    assert terms.loss.requires_grad
    assert not (terms.ratio.requires_grad or terms.clipped_share.requires_grad)


def test_before_the_first_update_the_gradient_is_the_policy_gradient():
    """At ρ = 1 nothing is clipped, the loss is −mean(A), and its gradient −A/N for each log-probability."""
    old, advantages = _doubles(-1.3, 0.4, 2.0), _doubles(1.0, -0.5, 2.0)
    new = old.clone().requires_grad_()
    terms = grpo_loss(new, old, advantages, 1e-4)
    terms.loss.backward()
    assert float(terms.loss.detach()) == pytest.approx(-2.5 / 3)
    assert float(terms.clipped_share) == 0.0
    torch.testing.assert_close(new.grad, -advantages / 3)


def test_a_clipped_sample_that_would_gain_has_no_gradient_and_one_that_would_lose_keeps_it():
    new = _doubles(0.5, 0.5, -0.5, -0.5).requires_grad_()
    grpo_loss(new, torch.zeros(4, dtype=torch.float64), _doubles(1.0, -1.0, 1.0, -1.0), 0.2).loss.backward()
    expected = [0.0, math.exp(0.5) / 4, -math.exp(-0.5) / 4, 0.0]
    torch.testing.assert_close(new.grad, _doubles(*expected))


@pytest.mark.parametrize("name", sorted(KERNELS))
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_the_gradient_of_a_toy_policy_agrees_with_finite_differences(name, kl_weight):
    """Through velocity, kernel, log-probability, ratio and clip, at a point where some samples are clipped."""
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn((6, 3), generator=generator, dtype=torch.float64)
    following = latents + 0.4 * torch.randn((6, 3), generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    weights = torch.randn((3, 3), generator=generator, dtype=torch.float64)
    kernel = make_kernel(name, 0.5)

    def objective(moved: Tensor) -> Tensor:
        old = kernel.transition(latents, (latents @ weights).tanh(), 0.8, 0.7, 0.95)
        new = kernel.transition(latents, (latents @ moved).tanh(), 0.8, 0.7, 0.95)
        terms = grpo_loss(log_prob(new, following), log_prob(old, following), advantages, 0.005)
        assert 0 < float(terms.clipped_share) < 1
        return terms.loss + kl_weight * kl_to_base(new.mean, old.mean, new.std)

    point = (weights + 0.3 * torch.randn((3, 3), generator=generator, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(point), point)
    step = 1e-6
    for row in range(3):
        for column in range(3):
            nudge = torch.zeros((3, 3), dtype=torch.float64)
            nudge[row, column] = step
            with torch.no_grad():
                slope = (objective(point + nudge) - objective(point - nudge)) / (2 * step)
            assert float(gradient[row, column]) == pytest.approx(float(slope), rel=1e-5, abs=1e-8)
    assert float(gradient.abs().max()) > 1e-3


def test_kl_is_that_of_two_gaussians_averaged_over_their_dimensions():
    generator = torch.Generator().manual_seed(0)
    mean, base = torch.randn((2, 4, 3), generator=generator, dtype=torch.float64)
    std = torch.tensor(0.7, dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(base, std)).mean()
    torch.testing.assert_close(kl_to_base(mean, base, std), expected)
    assert kl_to_base(mean, mean, std) == 0.0


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_guards_log_ratio_is_the_papers(name):
    """std·(log ρ + mean(Δμ²)/(2·std²)), GRPO-Guard (2510.22319), with the log-probabilities averaged as ours are."""
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn((5, 3, 2), generator=generator, dtype=torch.float64) for _ in range(4)]
    latents, sampled, moved, noise = draws
    kernel = make_kernel(name, 0.5)
    before = kernel.transition(latents, sampled, 0.8, 0.7, 0.9)
    after = kernel.transition(latents, sampled + 0.1 * moved, 0.8, 0.7, 0.9)
    following = before.mean + before.std * noise
    bias = (after.mean - before.mean).square().flatten(1).mean(1) / (2 * before.std**2)
    # CPS's own log-probability has no scale; the Gaussian's is what the paper's formula is of.
    new, old = (log_prob(replace(transition, normalised=True), following) for transition in (after, before))
    expected = before.std * (new - old + bias)
    torch.testing.assert_close(normalised_log_ratio(after, before.mean, following), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_guards_log_ratio_has_mean_zero_where_the_plain_one_has_not(name):
    generator = torch.Generator().manual_seed(2)
    latents = torch.zeros((20_000, 4), dtype=torch.float64)
    kernel = make_kernel(name, 0.5)
    before = kernel.transition(latents, torch.zeros_like(latents), 0.8, 0.7, 0.9)
    after = kernel.transition(latents, torch.full_like(latents, 2.0), 0.8, 0.7, 0.9)
    following = before.mean + before.std * torch.randn(latents.shape, generator=generator, dtype=torch.float64)
    plain = log_prob(after, following) - log_prob(before, following)
    guarded = normalised_log_ratio(after, before.mean, following)
    error = float(guarded.std()) / len(guarded) ** 0.5
    assert abs(float(guarded.mean())) < 4 * error
    assert float(plain.mean()) < -4 * float(plain.std()) / len(plain) ** 0.5
