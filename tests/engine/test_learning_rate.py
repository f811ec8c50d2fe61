"""The learning rate over a run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from engine.learning_rate import learning_rate_at
from engine.settings import LearningRateSchedule, OptimiserSettings


def _rates(schedule: LearningRateSchedule, decay_start: float = 0.5, num_iterations: int = 100) -> list[float]:
    options = OptimiserSettings(learning_rate=2e-3, schedule=schedule, decay_start=decay_start)
    return [learning_rate_at(options, iteration, num_iterations) for iteration in range(num_iterations)]


def test_a_constant_rate_stays() -> None:
    assert set(_rates("constant")) == {2e-3}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_rate_stays_until_its_start_and_reaches_nought_after_the_last_iteration(
    schedule: LearningRateSchedule,
) -> None:
    rates = _rates(schedule, 0.3)
    assert rates[:31] == [2e-3] * 31
    assert all(later < earlier for earlier, later in pairwise(rates[30:]))
    assert 0 < rates[-1] < 2e-3 * 0.02


def test_halfway_down_both_have_halved() -> None:
    assert _rates("linear")[75] == pytest.approx(1e-3)
    assert _rates("cosine")[75] == pytest.approx(1e-3)
    assert _rates("cosine")[60] == pytest.approx(1e-3 * (1 + math.cos(0.2 * math.pi)))


def test_a_run_of_one_iteration_trains_at_the_full_rate() -> None:
    assert _rates("linear", 0.0, 1) == [2e-3]
