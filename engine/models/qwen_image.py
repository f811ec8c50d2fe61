"""Qwen-Image, on diffusers' own pipeline.

Guidance is classifier-free, and the guided velocity of each token is then given the norm that it has without guidance,
as the pipeline does it. The empty prompt is a space, as its authors use it.

Prompts have as many tokens as they need. A batch is cut to its longest prompt, and what is padding in it is masked; the
pipeline makes one forward with the prompts and one without, here both are one forward, equal up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from engine.models.base import PromptEmbeddings
from engine.models.pipeline_model import PipelineModel
from engine.models.pipelines import to_pixels
from engine.models.tokens import from_tokens, to_tokens

_EMPTY_PROMPT = " "
_MAX_TOKENS = inspect.signature(QwenImagePipeline.__call__).parameters["max_sequence_length"].default


class QwenImage(PipelineModel):
    """Adapter of a QwenImagePipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own, 1024 with Qwen-Image's autoencoder.
    """

    pipeline_class: type = QwenImagePipeline
    takes_packed = True
    lora_targets: Sequence[str] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    )  # fmt: skip

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: tokens (P, L, D), and which of them are no padding (P, L)."""
        return PromptEmbeddings(self._encode(list(prompts)), self._encode([_EMPTY_PROMPT]))

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        # A call cuts prompts shorter than encode_prompt does by itself.
        tokens, mask = self.pipeline.encode_prompt(prompts, device=self.device, max_sequence_length=_MAX_TOKENS)
        if mask is None:  # the pipeline's word for "no padding"
            mask = torch.ones(tokens.shape[:2], device=tokens.device)
        return {"tokens": tokens, "mask": mask.bool()}

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with classifier-free guidance where guidance_scale > 1."""
        height, width = latents.shape[2] // self.packed, latents.shape[3] // self.packed
        if guidance_scale <= 1:
            predicted = self._predict(latents, sigma, embeddings.rows(rows))
        else:
            empty, full = self._predict_both(latents, sigma, embeddings, rows)
            guided = empty + guidance_scale * (full - empty)
            predicted = guided * (full.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return from_tokens(predicted, height, width, self.packed)

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        """Velocity of the image tokens (B, h/2·w/2, 4·C), float32."""
        batch, height, width = len(latents), latents.shape[2] // self.packed, latents.shape[3] // self.packed
        lengths = text["lengths"].tolist()
        longest = max(lengths)
        predicted = self.transformer(
            hidden_states=to_tokens(latents, self.packed),
            encoder_hidden_states=text["tokens"][:, :longest],
            encoder_hidden_states_mask=None if min(lengths) == longest else text["mask"][:, :longest],
            timestep=self._times(latents, sigma) / 1000,
            img_shapes=[[(1, height, width)]] * batch,
            return_dict=False,
        )[0]
        return predicted.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3): each channel has a mean and a deviation of its own, and an image is one frame."""
        vae = self.pipeline.vae
        mean, deviation = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return to_pixels(vae.decode((latents * deviation + mean).unsqueeze(2), return_dict=False)[0][:, :, 0])


def guidance_arguments(guidance_scale: float) -> dict[str, Any]:
    """How a plain pipeline call is asked for this guidance."""
    if guidance_scale <= 1:
        return {"true_cfg_scale": 1.0}
    return {"true_cfg_scale": guidance_scale, "negative_prompt": _EMPTY_PROMPT}
