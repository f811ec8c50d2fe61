"""CLIP score: how well image and prompt agree, by any CLIP model of transformers.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", arXiv 2104.08718. MixGRPO uses the
DFN ViT-H/14 at 384 pixels (Fang et al., "Data Filtering Networks", arXiv 2309.17425).

Deviation from the paper: the cosine itself, as MixGRPO takes it; CLIPScore is 2.5 times its positive part.
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

USUAL_WEIGHTS = REWARD_INFO["clip_score"].usual_weights
REMEDY = (
    "Set `weights` to the hub id or folder of a transformers CLIP, such as openai/clip-vit-large-patch14 (1.7 GB) or "
    "apple/DFN5B-CLIP-ViT-H-14-378 (3.9 GB), with config.json, the weights and the tokenizer; an open_clip checkpoint "
    "is made into such a folder by `palate rewards convert FILE --reward clip_score --out FOLDER`."
)


@dataclass(frozen=True)
class ClipScore:
    """Cosine of image and prompt, −1 to 1; usual images lie between 0.1 and 0.4."""

    clip: Clip

    @classmethod
    def load(cls, settings: RewardSettings, device: torch.device) -> ClipScore:
        """With the weights of the settings. Raises ValueError if they are missing or of another model."""
        return cls(Clip.load(Pretrained.of(settings, REMEDY, USUAL_WEIGHTS), device))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do; what exceeds the model's tokens is cut off."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        return Scores(self.clip.similarities(images, prompts).numpy())
