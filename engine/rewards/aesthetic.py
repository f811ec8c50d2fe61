"""Aesthetic score: how beautiful people find an image, whatever was asked for.

Schuhmann, "improved-aesthetic-predictor" (2022), as used in Schuhmann et al., "LAION-5B", arXiv 2210.08402, section 5:
a linear head on the normalised image features of CLIP ViT-L/14, trained on ratings from 1 to 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from engine.rewards.base import Pixels, Scores
from engine.rewards.clip import in_batches, unit_length
from engine.rewards.linear_head import LinearHead, head_widths
from engine.rewards.preprocessing import Preprocessing
from engine.rewards.pretrained import Pretrained, precision_on
from engine.settings import RewardSettings

HEAD_NAME = "head.safetensors"
REMEDY = (
    "Fetch sac+logos+ava1-l14-linearMSE.pth (4 MB) from github.com/christophschuhmann/improved-aesthetic-predictor; "
    "`palate rewards convert sac+logos+ava1-l14-linearMSE.pth --out FOLDER` makes it into a folder once, together with "
    "openai/clip-vit-large-patch14 (--base FOLDER where no hub can be reached); set `weights` to that folder."
)


@dataclass(frozen=True)
class Aesthetic:
    """Predicted rating, about 1 to 10; usual images lie between 4 and 7."""

    encoder: CLIPVisionModelWithProjection
    head: LinearHead
    preprocessing: Preprocessing

    @classmethod
    def load(cls, settings: RewardSettings, device: torch.device) -> Aesthetic:
        """With the weights of the settings. Raises ValueError if they are missing or of another model."""
        weights = Pretrained.of(settings, REMEDY)
        head = _load_head(weights)
        encoder = weights.model(CLIPVisionModelWithProjection, precision_on(device))
        if encoder.config.projection_dim != head[0].in_features:
            raise weights.unusable(
                f"the head is for {head[0].in_features} features, the encoder gives {encoder.config.projection_dim}"
            )
        side = encoder.config.image_size
        usual = Preprocessing(side, side, side, rounds_offset=True)
        return cls(encoder.to(device), head.to(device), weights.preprocessing(usual))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do: it plays no part."""

    @torch.inference_mode()
    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        return Scores(self.head(unit_length(in_batches(images, self._encode)))[:, 0].cpu().numpy())

    def _encode(self, images: Pixels) -> Tensor:
        pixels = self.preprocessing(images).to(self.encoder.device, self.encoder.dtype)
        return self.encoder(pixel_values=pixels).image_embeds


def _load_head(weights: Pretrained) -> LinearHead:
    """The head, in float32. Raises ValueError if it is not there or damaged."""
    path = weights.needed_file(HEAD_NAME)
    try:
        tensors = {key: value.float() for key, value in load_file(path).items()}
        head = LinearHead(head_widths(tensors))
        head.load_state_dict(tensors)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise weights.unusable(f"{HEAD_NAME} is damaged") from error
    return head.requires_grad_(False).eval()
