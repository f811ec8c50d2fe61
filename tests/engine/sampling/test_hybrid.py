"""Hybrid inference: exactly round(p·T) tuned steps, then the base model, on the one grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from engine.sampling.hybrid import Hybrid, num_tuned_steps
from engine.sampling.rollout import sample_ode
from engine.sampling.schedule import flow_sigmas

GRID = tuple(flow_sigmas(25, 3.0).tolist())


class TwoModels:
    """A velocity that is 1 tuned and −2 in its base, and remembers who was asked at which σ."""

    def __init__(self) -> None:
        self.tuned = True
        self.asked: list[tuple[str, float]] = []

    def velocity(self, latents: Tensor, sigma: float, rows: Tensor) -> Tensor:
        self.asked.append(("tuned" if self.tuned else "base", sigma))
        return torch.full_like(latents, 1.0 if self.tuned else -2.0)

    @contextmanager
    def base(self) -> Iterator[None]:
        self.tuned = False
        yield
        self.tuned = True


@pytest.mark.parametrize(
    ("share", "num_steps", "num_tuned"),
    [
        (0.0, 25, 0), (1.0, 25, 25), (0.6, 50, 30), (0.6, 25, 15), (0.02, 25, 1), (0.019, 25, 0),
        # Halves go up, from the decimals as written: 14.5 and 12.5 (in binary, 0.58·25 is below 14.5).
        (0.58, 25, 15), (0.5, 25, 13), (0.5, 1, 1), (0.1, 25, 3), (0.3, 25, 8), (0.7, 25, 18), (0.999, 25, 25),
    ],
)  # fmt: skip
def test_the_number_of_tuned_steps(share: float, num_steps: int, num_tuned: int) -> None:
    assert num_tuned_steps(share, num_steps) == num_tuned


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        num_tuned_steps(share, 25)


@pytest.mark.parametrize("num_tuned", [0, 1, 10, 24, 25])
def test_each_step_is_asked_once_of_the_right_model(num_tuned: int) -> None:
    models, noise = TwoModels(), torch.zeros(2, 3)
    latents = Hybrid(num_tuned, models.base).sample(models.velocity, noise, torch.arange(2), GRID, micro_batch=8)
    expected = [("tuned" if step < num_tuned else "base", sigma) for step, sigma in enumerate(GRID[:-1])]
    assert models.asked == expected
    # Euler's steps of constant velocities: σ falls from 1 to σₖ at speed 1, from there to 0 at speed −2.
    assert latents == pytest.approx(torch.full((2, 3), -(1 - GRID[num_tuned]) + 2 * GRID[num_tuned]), abs=1e-5)


def test_all_steps_tuned_never_touches_the_base() -> None:
    def no_base() -> None:
        raise AssertionError

    models, noise = TwoModels(), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    hybrid = Hybrid(25, no_base).sample(models.velocity, noise, torch.arange(3), GRID, 2)
    assert torch.equal(hybrid, sample_ode(models.velocity, noise, torch.arange(3), GRID, 2))


def test_a_switch_between_equal_models_changes_no_bit() -> None:
    """Going on from the middle of the grid is the same arithmetic as never having stopped."""
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def velocity(latents: Tensor, sigma: float, rows: Tensor) -> Tensor:
        return torch.sin(latents) * sigma + rows[:, None]

    straight = sample_ode(velocity, noise, torch.arange(3), GRID, 2)
    for num_tuned in range(26):
        hybrid = Hybrid(num_tuned, TwoModels().base).sample(velocity, noise, torch.arange(3), GRID, 2)
        assert torch.equal(hybrid, straight)
