"""How sure a measured mean, difference or win rate is: 95 % intervals in closed form (free of torch).

Means, and mean differences of pairs: Student's t. Shares, which are means of zeros and ones, and win rates: Wilson's
score interval (1927), which stays within 0 and 1 and has a width even where every image agrees. Nothing is drawn at
random, so the same scores give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.standardised import scale_of

CONFIDENCE = 0.95
# P(|T| ≤ 13) > 0.95 with a single degree of freedom, and the more there are the lighter the tails.
_LARGEST_QUANTILE = 13.0
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

Scores = NDArray[np.floating] | Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """A mean or a share over `count` images with its 95 % interval; a mean of one image has none."""

    value: float
    low: float | None
    high: float | None
    count: int
    interval: Literal["student_t", "wilson"]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts and seeds, the first against the second.

    Attributes:
        difference: mean of the first's score minus the second's.
        standardised: that difference in standard deviations of the second's scores; None where they have no spread.
        win_rate: share of pairs in which the first scores higher, a tie counted as half a win.
    """

    difference: Estimate
    win_rate: Estimate
    num_wins: int
    num_ties: int
    num_losses: int
    standardised: float | None = None


def mean_of(scores: Scores) -> Estimate | None:
    """The mean of the finite scores (N,); None if there are none. Zeros and ones alone are taken as a share."""
    finite = _finite(scores)
    if len(finite) == 0:
        return None
    if np.isin(finite, (0.0, 1.0)).all():
        return share_of(float(finite.sum()), len(finite))
    return _student(finite)


def compare(first: Scores, second: Scores) -> Comparison | None:
    """Scores (N,) in pairs, the first against the second; None if no pair has both."""
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    finite = _finite(differences)
    if len(finite) == 0:
        return None
    wins, losses = int((finite > 0).sum()), int((finite < 0).sum())
    ties = len(finite) - wins - losses
    difference, scale = _student(finite), scale_of(second)
    standardised = difference.value / scale.std if scale else None
    return Comparison(difference, share_of(wins + ties / 2, len(finite)), wins, ties, losses, standardised)


def share_of(successes: float, count: int) -> Estimate:
    """A share of `count` trials with Wilson's score interval; half successes make it wider than it need be."""
    share, z_squared = successes / count, _Z**2
    centre = (share + z_squared / (2 * count)) / (1 + z_squared / count)
    spread = _Z * math.sqrt(share * (1 - share) / count + z_squared / (4 * count**2)) / (1 + z_squared / count)
    # At a share of 0 or 1 the bound is that very number, which rounding would miss.
    low = 0.0 if successes == 0 else centre - spread
    high = 1.0 if successes == count else centre + spread
    return Estimate(share, low, high, count, "wilson")


@cache
def student_quantile(degrees: int) -> float:
    """The t with P(|T| ≤ t) = 0.95 for Student's T of that many degrees of freedom, at least 1."""
    low, high = 0.0, _LARGEST_QUANTILE
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_probability(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _student(values: NDArray[np.float64]) -> Estimate:
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Estimate(mean, None, None, count, "student_t")
    half = student_quantile(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count, "student_t")


def _student_probability(t: float, degrees: int) -> float:
    """P(|T| ≤ t), the finite series for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    # Each term is (k−1)/k · cos²θ times the one before: k = 2, 4, … for even degrees, 3, 5, … for odd ones.
    k = np.arange(2 + odd, degrees, 2, dtype=np.float64)
    terms = np.concatenate([[1.0], np.cumprod(math.cos(angle) ** 2 * (k - 1) / k)])
    if not odd:
        return math.sin(angle) * float(terms.sum())
    series = math.sin(angle) * math.cos(angle) * float(terms.sum()) if degrees > 1 else 0.0
    return 2 / math.pi * (angle + series)


def _finite(scores: Scores) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    return values[np.isfinite(values)]
