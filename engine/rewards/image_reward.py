"""ImageReward: what people think of an image for its prompt.

Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation", arXiv 2304.05977,
section 3.1: a BLIP whose text encoder looks at the image by cross-attention, and a head on its first token; the score
is standardised by the mean and spread of the training data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from engine.quiet import quiet_libraries
from engine.rewards.base import Pixels, Scores
from engine.rewards.clip import BATCH_SIZE
from engine.rewards.linear_head import LinearHead
from engine.rewards.preprocessing import Preprocessing
from engine.rewards.pretrained import Pretrained, precision_on
from engine.settings import RewardSettings

MODEL_TYPE = "image_reward"
WEIGHTS_NAME = "model.safetensors"
MAX_TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
REMEDY = (
    "Fetch ImageReward.pt (1.8 GB) and med_config.json from the hub's zai-org/ImageReward; `palate rewards convert "
    "ImageReward.pt --out FOLDER` makes them into a folder once, with the tokenizer of bert-base-uncased (--base "
    "FOLDER where no hub can be reached); set `weights` to that folder."
)


class ImageRewardModel(nn.Module):
    """BLIP's image encoder, its text encoder with cross-attention, and the head."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` as written by the conversion: `vision`, `text`, `head` (widths)."""
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**config["vision"]))
        self.text = BlipTextModel(BlipTextConfig(**config["text"]), add_pooling_layer=False)
        self.head = LinearHead(config["head"])

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores (N,), float32, of pixel values (N, 3, H, W) and tokens (N, L)."""
        images = self.vision(pixel_values=pixels).last_hidden_state
        output = self.text(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long, device=images.device),
        )  # fmt: skip
        return self.head(output.last_hidden_state[:, 0].float())[:, 0]


@dataclass(frozen=True)
class ImageReward:
    """Standardised preference: 0 is an average image of the training data, 1 one standard deviation better."""

    model: ImageRewardModel
    tokenizer: Any
    preprocessing: Preprocessing
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(cls, settings: RewardSettings, device: torch.device) -> ImageReward:
        """With the weights of the settings. Raises ValueError if they are missing or of another model."""
        weights, dtype = Pretrained.of(settings, REMEDY), precision_on(device)
        model = _load_model(weights)
        side = model.vision.config.image_size
        model.vision.to(dtype)
        model.text.to(dtype)
        usual = Preprocessing(side, side, side, rounds_offset=True)
        return cls(model.to(device), weights.tokenizer(), weights.preprocessing(usual), device, dtype)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do; what exceeds 35 tokens is cut off."""

    @torch.inference_mode()
    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        parts = []
        for start in range(0, len(images), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            pixels = self.preprocessing(images[part]).to(self.device, self.dtype)
            parts.append(self.model(pixels, tokens.input_ids[part], tokens.attention_mask[part]))
        return Scores(((torch.cat(parts) - MEAN) / STD).cpu().numpy())


def _load_model(weights: Pretrained) -> ImageRewardModel:
    """The model in float32 on the CPU. Raises ValueError if it is not there, damaged, or another."""
    try:
        config = json.loads(weights.needed_file("config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != MODEL_TYPE:
            raise weights.unusable("they have not been converted")
        with quiet_libraries(), torch.device("meta"):
            model = ImageRewardModel(config)
        tensors = {key: value.float() for key, value in load_file(weights.needed_file(WEIGHTS_NAME)).items()}
        with quiet_libraries(), torch.device("cpu"):
            model = ImageRewardModel(config)
        model.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError, SafetensorError, json.JSONDecodeError) as error:
        raise weights.unusable("they are damaged") from error
    return model.requires_grad_(False).eval()
