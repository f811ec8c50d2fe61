"""Does the image show what the prompt asks? The built-in model's exact checker as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.builtin import checker
from engine.builtin.scenes import parse_caption
from engine.rewards.base import Pixels, Scores


@dataclass(frozen=True)
class Composition:
    """Colours, shapes, count, sizes, positions and background: the product of their partial credits, 0 to 1.

    Extra measure `all_correct`: 1 where everything asked for is there, else 0.
    """

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for the first prompt outside the built-in model's grammar."""
        for prompt in prompts:
            if parse_caption(prompt) is None:
                raise ValueError(
                    f'The reward "composition" cannot judge the prompt "{_shortened(prompt)}": it only knows sentences '
                    'such as "a red circle", "two small blue stars on black" or "a red circle left of a blue square on '
                    'a grey background". Change that prompt, or choose another reward.'
                )

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, 64, 64, 3). Raises ValueError for a prompt outside the grammar."""
        results = [checker.check(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return Scores(
            np.array([result.score for result in results], dtype=np.float32),
            {"all_correct": np.array([result.correct for result in results], dtype=np.float32)},
        )


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 100 else prompt[:99] + "…"
