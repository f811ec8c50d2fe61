"""How alike an image and its prompt are to a CLIP model: the cosine of their features, which several rewards build on.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ftfy
import torch
from torch import Tensor
from transformers import CLIPModel

from engine.rewards.base import Pixels
from engine.rewards.preprocessing import Preprocessing
from engine.rewards.pretrained import Pretrained, precision_on

BATCH_SIZE = 32
"""Images that go through an encoder at a time."""


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its tokenizer and preprocessing, on its device.

    Attributes:
        mends_prompts: prompts are read as open_clip does (`mended`).
    """

    model: CLIPModel
    tokenizer: Any
    preprocessing: Preprocessing
    mends_prompts: bool = False

    @classmethod
    def load(cls, weights: Pretrained, device: torch.device) -> Clip:
        """From weights of a transformers CLIP. Raises ValueError."""
        config = weights.config("clip")
        side = config.vision_config.image_size
        preprocessing = weights.preprocessing(Preprocessing(side, side, side))
        tokenizer = weights.tokenizer()
        if len(tokenizer) > config.text_config.vocab_size:
            raise weights.unusable(
                f"the tokenizer knows {len(tokenizer)} tokens, the model {config.text_config.vocab_size}"
            )
        model = weights.model(CLIPModel, precision_on(device)).to(device)
        return cls(model, tokenizer, preprocessing, weights.mends_prompts())

    def similarities(self, images: Pixels, prompts: Sequence[str]) -> Tensor:
        """Cosines (N,), float32 on the CPU, of uint8 images (N, H, W, 3) and their prompts."""
        distinct = list(dict.fromkeys(prompts))
        texts = self.text_features(distinct)[[distinct.index(prompt) for prompt in prompts]]
        return (self.image_features(images) * texts).sum(dim=-1).cpu()

    @torch.inference_mode()
    def image_features(self, images: Pixels) -> Tensor:
        """Features (N, D) of length 1, float32, of uint8 images (N, H, W, 3)."""
        return unit_length(in_batches(images, self._encode))

    def _encode(self, images: Pixels) -> Tensor:
        pixels = self.preprocessing(images).to(self.model.device, self.model.dtype)
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Features (P, D) of length 1, float32; what exceeds the model's tokens is cut off."""
        texts = [mended(prompt) for prompt in prompts] if self.mends_prompts else list(prompts)
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, return_tensors="pt",
            max_length=self.model.config.text_config.max_position_embeddings,
            # To open_clip, what looks like a token of transformers' is text like any other.
            split_special_tokens=self.mends_prompts,
        ).to(self.model.device)  # fmt: skip
        output = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return unit_length(output.pooler_output)


def mended(prompt: str) -> str:
    """The prompt as OpenAI's and open_clip's code reads it, and transformers' does not.

    ftfy repairs encodings and makes quotation marks straight, HTML's entities are resolved twice, and letters are
    small by the rules of the whole word.
    """
    return html.unescape(html.unescape(ftfy.fix_text(prompt))).strip().lower()


def in_batches(images: Pixels, encode: Callable[[Pixels], Tensor]) -> Tensor:
    """What `encode` gives (N, …) for uint8 images (N, H, W, 3), a few images at a time."""
    return torch.cat([encode(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)])


def unit_length(features: Tensor) -> Tensor:
    """Features (N, D) scaled to length 1, in float32."""
    return torch.nn.functional.normalize(features.float(), dim=-1)
