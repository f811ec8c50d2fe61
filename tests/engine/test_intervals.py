"""Intervals against printed tables, closed forms, and their own promise: 95 % of them hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.intervals import compare, mean_of, share_of, student_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # Printed in every table of Student's t, two-sided 95 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (29, 2.045), (30, 2.042), (120, 1.980)],
)
def test_students_quantile_is_the_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_students_quantile_in_closed_form() -> None:
    """One degree is Cauchy's tan(π·0.95/2); two are p·√(2/(1−p²)); very many are the normal's."""
    assert student_quantile(1) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-9)
    assert student_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-9)
    assert student_quantile(50_000) == pytest.approx(1.959964, abs=1e-4)


def test_a_mean_has_students_interval() -> None:
    mean = mean_of([1.5, 2.5, 3.5])
    assert mean is not None
    half_width = 4.302653 / math.sqrt(3)  # t₂ times a standard deviation of 1, over √3
    assert mean.value == 2.5
    assert (mean.low, mean.high) == pytest.approx((2.5 - half_width, 2.5 + half_width), abs=1e-5)
    assert (mean.count, mean.interval) == (3, "student_t")


def test_failed_scores_are_left_out() -> None:
    assert mean_of([1.5, math.nan, 2.5, 3.5]) == mean_of([1.5, 2.5, 3.5])
    assert mean_of([math.nan]) is None
    first, second = [0.5, math.nan, 0.75, 0.25], [0.25, 0.5, math.nan, 0.5]
    assert compare(first, second) == compare([0.5, 0.25], [0.25, 0.5])
    assert compare([math.nan], [1.0]) is None


def test_a_difference_is_told_in_the_seconds_spread_where_it_has_one() -> None:
    compared = compare([0.5, 0.75, 1.0, math.nan], [0.25, 0.5, 0.75, 1.0])
    assert compared is not None
    # The second's own scores, one without a partner among them, have a variance of (9 + 1 + 1 + 9)/64/3.
    assert compared.standardised == pytest.approx(0.25 / math.sqrt(20 / 64 / 3), rel=1e-12)
    for alike in ([0.1, 0.1, 0.1], [0.1, math.nan, math.nan]):
        without = compare([0.5, 0.75, 1.0], alike)
        assert without is not None
        assert without.standardised is None


def test_one_image_has_a_mean_without_an_interval() -> None:
    mean = mean_of([0.4])
    assert mean is not None
    assert (mean.value, mean.low, mean.high, mean.count) == (0.4, None, None, 1)


def test_zeros_and_ones_are_a_share() -> None:
    mean = mean_of([0.0, 1.0, 1.0, 0.0])
    assert mean == share_of(2, 4)
    assert mean is not None
    assert mean.interval == "wilson"


def test_wilsons_interval_in_closed_form() -> None:
    z_squared = 1.959964**2
    # All or nothing: 1/(1 + z²/n) is what is left.
    assert share_of(20, 20).low == pytest.approx(1 / (1 + z_squared / 20), abs=1e-6)
    assert share_of(20, 20).high == 1.0
    assert share_of(0, 20).low == 0.0
    assert share_of(0, 20).high == pytest.approx(1 - 1 / (1 + z_squared / 20), abs=1e-6)
    # Half and half: symmetric, half-width ½·√(z²/(n + z²)).
    half = share_of(8, 16)
    width = 0.5 * math.sqrt(z_squared / (16 + z_squared))
    assert (half.low, half.high) == pytest.approx((0.5 - width, 0.5 + width), abs=1e-6)


def test_wilsons_bounds_solve_its_equation() -> None:
    """A bound p is where the share lies z standard errors of p away: (p̂ − p)² = z²·p(1−p)/n."""
    estimate = share_of(7, 31)
    for bound in (estimate.low, estimate.high):
        assert bound is not None
        assert (7 / 31 - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 31, rel=1e-5)


def test_ties_are_half_a_win() -> None:
    comparison = compare([3.0, 1.0, 2.0, 2.0], [1.0, 2.0, 2.0, 1.5])
    assert comparison is not None
    assert (comparison.num_wins, comparison.num_ties, comparison.num_losses) == (2, 1, 1)
    assert comparison.win_rate.value == 2.5 / 4
    assert comparison.difference.value == pytest.approx((2 - 1 + 0 + 0.5) / 4)


def test_a_model_against_itself_ties() -> None:
    comparison = compare([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert comparison is not None
    assert (comparison.difference.value, comparison.difference.low, comparison.difference.high) == (0.0, 0.0, 0.0)
    assert (comparison.win_rate.value, comparison.num_ties) == (0.5, 3)


def test_the_two_sides_mirror_each_other() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 40))
    there, back = compare(first, second), compare(second, first)
    assert there is not None
    assert back is not None
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.win_rate.value == pytest.approx(1 - back.win_rate.value)
    assert there.win_rate.low == pytest.approx(1 - back.win_rate.high)


def test_pairs_tell_apart_what_means_alone_cannot() -> None:
    """Prompts differ by far more than the models: the paired interval is narrow, those of the means are wide."""
    rng = np.random.default_rng(1)
    prompts = rng.normal(scale=10.0, size=50)
    first, second = prompts + 0.5 + rng.normal(scale=0.1, size=50), prompts
    comparison, mean = compare(first, second), mean_of(first)
    assert comparison is not None
    assert mean is not None
    assert comparison.difference.low > 0.4
    assert mean.high - mean.low > 4


@pytest.mark.parametrize("count", [5, 24, 96])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(count: int) -> None:
    rng = np.random.default_rng(2)
    num_trials = 4000
    normal = rng.normal(loc=0.3, size=(num_trials, count))
    shares = rng.random((num_trials, count)) < 0.3
    # The standard error of a coverage of 95 % over 4000 trials is 0.34 %.
    assert coverage(normal, 0.3) == pytest.approx(0.95, abs=0.012)
    # A share has steps, so Wilson's coverage is 95 % on average over shares and lies about it at each.
    assert coverage(shares, 0.3) == pytest.approx(0.95, abs=0.03)


def coverage(trials: np.ndarray, truth: float) -> float:
    estimates = [mean_of(trial) for trial in trials]
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))
