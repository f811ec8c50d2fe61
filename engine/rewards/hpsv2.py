"""Human Preference Score v2 and v2.1: which image people prefer for a prompt.

Wu et al., "Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of Text-to-Image Synthesis",
arXiv 2306.09341: a CLIP ViT-H/14 trained on rankings, whose score is its cosine. Both versions are the same model with
other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.rewards.base import Pixels, Scores
from engine.rewards.clip import Clip
from engine.rewards.pretrained import Pretrained
from engine.settings import RewardSettings

REMEDY = (
    "Fetch HPS_v2.1_compressed.pt (2 GB; or HPS_v2_compressed.pt) from the hub's xswu/HPSv2; `palate rewards convert "
    "HPS_v2.1_compressed.pt --out FOLDER` makes it into a folder once, with the tokenizer of "
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K (--base FOLDER where no hub can be reached); set `weights` to that folder."
)


@dataclass(frozen=True)
class Hpsv2:
    """Cosine of image and mended prompt, −1 to 1; usual images lie between 0.2 and 0.35."""

    clip: Clip

    @classmethod
    def load(cls, settings: RewardSettings, device: torch.device) -> Hpsv2:
        """With the weights of the settings. Raises ValueError if they are missing or of another model."""
        return cls(_as_the_original(Clip.load(Pretrained.of(settings, REMEDY), device)))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do; what exceeds the model's tokens is cut off."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        return Scores(self.clip.similarities(images, prompts).numpy())


def _as_the_original(clip: Clip) -> Clip:
    """With HPSv2's own preprocessing, also for weights that somebody else has brought into transformers' form."""
    preprocessing = replace(clip.preprocessing, resizes_floats=True, rounds_offset=True)
    return replace(clip, preprocessing=preprocessing, mends_prompts=True)
