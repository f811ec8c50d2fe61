"""Scores in units of the base model's own spread, so that rewards with different scales share an axis (torch-free).

Nothing here is stored: an evaluation's raw scores are, image by image, and step 0 is the base model on the same prompts
and seeds as every later step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Scores that differ by less, relative to their size, are one score: a few units in the last place of float32.
FLOAT_NOISE = 1e-6


@dataclass(frozen=True)
class Scale:
    """What a reward's scores are measured by: mean and unbiased standard deviation of the base model's, raw."""

    mean: float
    std: float

    def standardised(self, score: float) -> float:
        """(score − mean)/std, of one score or of a mean of scores."""
        return (score - self.mean) / self.std


def scale_of(scores: NDArray[np.floating] | Sequence[float]) -> Scale | None:
    """The scale that scores (N,) give; NaN or ±inf marks one that failed, which is left out.

    None where fewer than two are left, or all are equal within float noise: there is no spread to measure by.
    """
    values = np.asarray(scores, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if len(finite) < 2 or np.ptp(finite) <= FLOAT_NOISE * np.abs(finite).max():
        return None
    return Scale(float(finite.mean()), float(finite.std(ddof=1)))


def scales_of(images: Iterable[Mapping[str, float]]) -> dict[str, Scale]:
    """By reward, of the base model's images: each has its scores by reward, and lacks those that failed."""
    scores = list(images)
    names = dict.fromkeys(name for image in scores for name in image)
    found = {name: scale_of([image.get(name, math.nan) for image in scores]) for name in names}
    return {name: scale for name, scale in found.items() if scale is not None}
