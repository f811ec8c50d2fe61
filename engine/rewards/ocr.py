"""Is the text that the prompt quotes written in the image? Flow-GRPO's reward for text rendering.

J. Liu et al., "Flow-GRPO" (arXiv 2505.05470), visual text rendering: r = max(1 − N_e/N_ref, 0), with N_e the edit
distance between the text in the image and the quoted one, and N_ref the length of the latter; blanks and case do not
count, and a text that is contained in what was read is right.

Deviations from the paper: read by PP-OCRv4 as packaged by rapidocr; several quoted passages are joined, and all right
where each is contained; curly quotation marks count as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from engine.extras import missing_extra
from engine.rewards.base import Pixels, Scores

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]')


class Ocr:
    """Legibility of the quoted text, from 0 to 1; reads on the CPU with weights that come with the package."""

    def __init__(self) -> None:
        try:
            from rapidocr_onnxruntime import RapidOCR  # noqa: PLC0415 - an extra, for this reward alone
        except ImportError as error:
            raise missing_extra("The reward ocr", "rewards", error) from error
        self._reader = RapidOCR(intra_op_num_threads=torch.get_num_threads())

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for the first prompt that quotes no text."""
        for prompt in prompts:
            if not quoted_passages(prompt):
                raise ValueError(
                    f'The reward "ocr" finds no quoted text in the prompt {prompt[:100]!r}; write what the image shall '
                    'say in quotation marks, such as a shop sign that says "OPEN". Or choose another reward.'
                )

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        values = [legibility(self.read(image), prompt) for image, prompt in zip(images, prompts, strict=True)]
        return Scores(np.array(values, dtype=np.float32))

    def read(self, image: Pixels) -> str:
        """All text in a uint8 image (H, W, 3), from top to bottom."""
        lines, _ = self._reader(np.ascontiguousarray(image[..., ::-1]))  # it reads BGR
        return "".join(text for _, text, _ in lines or ())


def quoted_passages(prompt: str) -> list[str]:
    """What the prompt quotes, without blanks and in lower case; passages of blanks alone are left out."""
    return [passage for found in _QUOTED.findall(prompt) if (passage := _plain("".join(found)))]


def legibility(read: str, prompt: str) -> float:
    """max(1 − edit distance/length, 0) of what was read against what the prompt quotes."""
    passages, text = quoted_passages(prompt), _plain(read)
    if all(passage in text for passage in passages):
        return 1.0
    wanted = "".join(passages)
    return max(0.0, 1.0 - edit_distance(text, wanted) / len(wanted))


def edit_distance(first: str, second: str) -> int:
    """The fewest insertions, deletions and replacements of a letter that make one the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        above = row
        row = [i]
        for j, other in enumerate(second, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other)))
    return row[-1]


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
