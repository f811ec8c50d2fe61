"""Colourfulness as Hasler and Süsstrunk measure it.

D. Hasler, S. E. Süsstrunk, "Measuring colorfulness in natural images", SPIE 5007 (2003), section 7: with rg = R − G and
yb = ½(R + G) − B on 0…255 pixels, M = σ_rgyb + 0.3·μ_rgyb, where σ² and μ² add those of rg and yb.

Deviation from the paper: M is given in hundredths, so that usual images lie between 0 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.rewards.base import Column, Pixels, Scores


@dataclass(frozen=True)
class Vividness:
    """Colourfulness M/100, from 0 (grey) to 2.98; the prompt plays no part."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        return Scores(colourfulness(images) / np.float32(100))


def colourfulness(images: Pixels) -> Column:
    """M of each of N uint8 images (N, H, W, 3): float32 (N,)."""
    red, green, blue = np.moveaxis(images.astype(np.float64), 3, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])  # (2, N, H, W)
    deviation = np.linalg.norm(opponents.std(axis=(2, 3)), axis=0)
    mean = np.linalg.norm(opponents.mean(axis=(2, 3)), axis=0)
    colourfulness_N: Column = (deviation + 0.3 * mean).astype(np.float32)
    return colourfulness_N
