"""JPEG size as a reward, as in DDPO (Black et al., arXiv 2305.13301, section 4): quality 95, thousands of bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.rewards.base import Column, Pixels, Scores

QUALITY = 95


@dataclass(frozen=True)
class Incompressibility:
    """The image's size as a JPEG in kB; the prompt plays no part."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        return Scores(jpeg_kilobytes(images))


def jpeg_kilobytes(images: Pixels) -> Column:
    """Size of each of N uint8 images (N, H, W, 3) as a JPEG of quality 95, in kB (1,000 bytes): float32 (N,)."""
    return np.array([_num_bytes(image) / 1000 for image in images], dtype=np.float32)


def _num_bytes(image: Pixels) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()
