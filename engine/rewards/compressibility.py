"""Minus the JPEG size, as in DDPO (Black et al., arXiv 2305.13301, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.rewards.base import Pixels, Scores
from engine.rewards.incompressibility import jpeg_kilobytes


@dataclass(frozen=True)
class Compressibility:
    """Minus the image's size as a JPEG in kB; the prompt plays no part."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        return Scores(-jpeg_kilobytes(images))
