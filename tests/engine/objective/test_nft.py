"""DiffusionNFT: the loss by hand, its gradient, and that it moves towards good images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.objective.nft import nft_loss, noise_images, optimality


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_optimality_spans_zero_to_one():
    advantages = torch.tensor([-9.0, -5.0, 0.0, 2.5, 5.0, 9.0])
    assert optimality(advantages, 5.0).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_loss_by_hand(beta):
    """One pixel: clean 0.2, noisy 0.5 at σ = 0.5, velocities 1 (sampling) and 2 (in training)."""
    noisy, clean = torch.full((2, 1), 0.5), torch.full((2, 1), 0.2)
    good = torch.tensor([1.0, 0.25])
    loss = nft_loss(noisy, clean, 0.5, torch.full((2, 1), 2.0), torch.ones(2, 1), good, beta)
    positive = abs(0.5 - 0.5 * (1 + beta) - 0.2)  # a square over its own size
    negative = abs(0.5 - 0.5 * (1 - beta) - 0.2)
    expected = [positive / beta, (0.25 * positive + 0.75 * negative) / beta]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_an_image_neither_good_nor_bad_has_no_gradient_where_the_policies_agree():
    velocity = _random(3, 4).requires_grad_()
    good = torch.full((3,), 0.5, dtype=torch.float64)
    nft_loss(_random(3, 4, seed=1), _random(3, 4, seed=2), 0.6, velocity, velocity.detach(), good, 0.7).sum().backward()
    torch.testing.assert_close(velocity.grad, torch.zeros_like(velocity))


@pytest.mark.parametrize(("good", "sign"), [(1.0, 1.0), (0.0, -1.0)])
def test_a_step_moves_towards_a_good_image_and_away_from_a_bad_one(good, sign):
    noisy, clean = _random(1, 50, seed=1), _random(1, 50, seed=2)
    velocity = _random(1, 50).requires_grad_()
    nft_loss(noisy, clean, 0.5, velocity, velocity.detach(), torch.tensor([good]).double(), 1.0).sum().backward()
    error = (noisy - 0.5 * velocity.detach() - clean).square().mean()
    stepped = (noisy - 0.5 * (velocity.detach() - 1.0 * velocity.grad) - clean).square().mean()
    assert sign * float(error - stepped) > 0


def test_the_best_velocity_is_the_papers_when_images_are_good_with_probability_r():
    """Minimising over v gives v_old + (2r−1)/β·(target − v_old) where both errors weigh the same (2509.16117)."""
    noisy, clean, sampler = _random(1, 1, seed=3), _random(1, 1, seed=4), _random(1, 1, seed=5)
    sigma, beta, r = 0.5, 0.8, 0.8
    target = (noisy - clean) / sigma
    velocity = sampler + (2 * r - 1) / beta * (target - sampler)
    velocity.requires_grad_()
    step = beta * (velocity - sampler)
    squares = [(sigma * (sampler + s * step - target)).square() for s in (1, -1)]
    (r * squares[0] + (1 - r) * squares[1]).sum().backward()
    torch.testing.assert_close(velocity.grad, torch.zeros_like(velocity), atol=1e-12, rtol=0)


def test_images_are_noised_along_straight_paths_at_their_own_levels():
    clean = _random(5, 2, 3)
    sigmas = (1.0, 0.7, 0.4, 0.1)
    trained = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 0, 0, 1], [0, 1, 1, 0, 1], [0, 0, 1, 1, 0]]).bool()
    asked: list[tuple[float, list[int]]] = []

    def velocity(latents: Tensor, sigma: float, images: Tensor) -> Tensor:
        asked.append((sigma, images.tolist()))
        return latents * sigma + images[:, None, None]

    noised = noise_images(clean, sigmas, trained, velocity, torch.Generator().manual_seed(7))
    assert noised.levels.t().tolist() == [[0, 1], [1, 2], [2, 3], [0, 3], [1, 2]]
    noise = torch.randn((2, 5, 2, 3), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for draw in range(2):
        for image in range(5):
            sigma = sigmas[noised.levels[draw, image]]
            expected = (1 - sigma) * clean[image] + sigma * noise[draw, image]
            torch.testing.assert_close(noised.noisy[draw, image], expected)
            torch.testing.assert_close(noised.velocity[draw, image], expected * sigma + image)
    assert sorted(image for _, images in asked for image in images) == sorted([0, 1, 2, 3, 4] * 2)

    asked.clear()
    few = noise_images(
        clean, sigmas, trained, velocity, torch.Generator().manual_seed(7), selected=torch.tensor([1, 4])
    )
    assert [images for _, images in asked] == [[], [1, 4], [1, 4], []]
    torch.testing.assert_close(few.noisy, noised.noisy)
    torch.testing.assert_close(few.velocity[:, [1, 4]], noised.velocity[:, [1, 4]])
