"""PickScore: which of two images people would pick for a prompt.

Kirstain et al., "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation", arXiv 2305.01569,
section 4: a CLIP ViT-H/14 trained on choices, whose score is its cosine times its learned temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.catalogue import REWARD_INFO
from engine.rewards.base import Pixels, Scores
from engine.rewards.clip import Clip
from engine.rewards.pretrained import Pretrained
from engine.settings import RewardSettings

USUAL_WEIGHTS = REWARD_INFO["pickscore"].usual_weights
REMEDY = (
    "Set `weights` to yuvalkirstain/PickScore_v1 (3.9 GB, fetched once), or to a folder with that repository's "
    "config.json and model.safetensors and the tokenizer's files of laion/CLIP-ViT-H-14-laion2B-s32B-b79K."
)


@dataclass(frozen=True)
class PickScore:
    """Cosine of image and prompt times the model's temperature; usual images lie between 17 and 25."""

    clip: Clip

    @classmethod
    def load(cls, settings: RewardSettings, device: torch.device) -> PickScore:
        """With the weights of the settings. Raises ValueError if they are missing or of another model."""
        return cls(Clip.load(Pretrained.of(settings, REMEDY, USUAL_WEIGHTS), device))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do; what exceeds the model's tokens is cut off."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        temperature = self.clip.model.logit_scale.float().exp().cpu()
        return Scores((temperature * self.clip.similarities(images, prompts)).numpy())
