"""Qwen-Image, on diffusers' own pipeline.

Guidance is classifier-free, and the guided velocity of each token is then given the norm that it has without guidance,
as the pipeline does it. The empty prompt is a space, as its authors use it.

Prompts have as many tokens as they need. A batch is cut to its longest prompt, and what is padding in it is masked; the
pipeline makes one forward with the prompts and one without, here both are one forward, equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from engine.models.base import PromptEmbeddings
from engine.models.pipelines import (
    freeze,
    load_pipeline,
    release_encoders,
    resolution_shift,
    shifted_sigmas,
    to_pixels,
)
from engine.models.tokens import from_tokens, to_tokens
from engine.settings import ModelSettings

_PACKED = 2  # latents a side of a token
_EMPTY_PROMPT = " "


class QwenImage:
    """Adapter of a QwenImagePipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own, 1024 with Qwen-Image's autoencoder.
    """

    lora_targets: Sequence[str] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    )  # fmt: skip

    def __init__(self, pipeline: Any, resolution: int | None = None) -> None:
        self.pipeline = pipeline
        freeze(pipeline)
        self.transformer: Any = pipeline.transformer
        self.device = torch.device("cpu")
        self._latent_side = (
            pipeline.default_sample_size if resolution is None else resolution // pipeline.vae_scale_factor
        )

    @classmethod
    def from_folder(cls, folder: Path, settings: ModelSettings) -> Self:
        """The pipeline in a folder as `save_pretrained` writes it. Raises ValueError if it is another family's."""
        return cls(load_pipeline(QwenImagePipeline, folder, settings), settings.resolution)

    def to(self, device: torch.device) -> None:
        """Move every part to a device."""
        self.pipeline.to(device)
        self.device = device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: tokens (P, L, D), and which of them are no padding (P, L)."""
        return PromptEmbeddings(self._encode(list(prompts)), self._encode([_EMPTY_PROMPT]))

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        tokens, mask = self.pipeline.encode_prompt(prompts, device=self.device)
        if mask is None:  # the pipeline's word for "no padding"
            mask = torch.ones(tokens.shape[:2], device=tokens.device)
        return {"tokens": tokens, "mask": mask.bool()}

    def release_encoders(self) -> None:
        """Free the text encoder's memory; no prompt can be encoded after it."""
        release_encoders(self.pipeline)

    def noise(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Standard normal latents (N, C, h, w); packed, they are what the pipeline draws from the same seed."""
        channels = self.transformer.config.in_channels // _PACKED**2
        shape = (num_images, channels, self._latent_side, self._latent_side)
        return torch.randn(shape, generator=generator).to(self.device)

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call, shifted by the resolution where the scheduler says so."""
        scheduler, num_tokens = self.pipeline.scheduler, (self._latent_side // _PACKED) ** 2
        return shifted_sigmas(scheduler, num_steps, resolution_shift(scheduler, num_tokens))

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with classifier-free guidance where guidance_scale > 1."""
        height, width = latents.shape[2] // _PACKED, latents.shape[3] // _PACKED
        if guidance_scale <= 1:
            predicted = self._predict(latents, sigma, embeddings.rows(rows))
        else:
            text = embeddings.guided_rows(rows)
            empty, full = self._predict(torch.cat([latents, latents]), sigma, text).chunk(2)
            guided = empty + guidance_scale * (full - empty)
            predicted = guided * (full.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return from_tokens(predicted, height, width, _PACKED)

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        """Velocity of the image tokens (B, h/2·w/2, 4·C), float32."""
        batch, height, width = len(latents), latents.shape[2] // _PACKED, latents.shape[3] // _PACKED
        length = int(text["mask"].sum(1).max())
        mask = text["mask"][:, :length]
        predicted = self.transformer(
            hidden_states=to_tokens(latents, _PACKED),
            encoder_hidden_states=text["tokens"][:, :length],
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            timestep=torch.full((batch,), sigma, dtype=torch.float32, device=latents.device),
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
