"""FLUX.1 family (dev, Krea, schnell and what was tuned from them), on diffusers' own pipeline.

The engine's latents are the autoencoder's, (N, C, h, w); they become tokens, 2×2 of them each, only around the
transformer, so that kernels, log-probabilities and noise are the same as for every other family.

Guidance is what the model was distilled for: dev and Krea take the scale as an input, at no cost; schnell takes none.
There is no classifier-free guidance, and so no empty prompt.

In bfloat16 the frozen weights are held in bfloat16 too, all but the autoencoder's, and diffusers' transformer rounds σ
and the guidance scale to bfloat16 before it embeds them, as it does in its own pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from engine.models.base import JOINT_ATTENTION_LORA_TARGETS, PromptEmbeddings
from engine.models.pipelines import (
    decode_latents,
    freeze,
    load_pipeline,
    release_encoders,
    resolution_shift,
    shifted_sigmas,
)
from engine.models.tokens import from_tokens, to_tokens, token_positions
from engine.settings import ModelSettings

_PACKED = 2  # latents a side of a token


class Flux:
    """Adapter of a FluxPipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoders, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own, 1024 with FLUX.1's autoencoder.
    """

    lora_targets: Sequence[str] = JOINT_ATTENTION_LORA_TARGETS

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
        return cls(load_pipeline(FluxPipeline, folder, settings), settings.resolution)

    def to(self, device: torch.device) -> None:
        """Move every part to a device."""
        self.pipeline.to(device)
        self.device = device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: T5's tokens, and CLIP's pooled text."""
        tokens, pooled, _ = self.pipeline.encode_prompt(list(prompts), device=self.device)
        return PromptEmbeddings({"tokens": tokens, "pooled": pooled})

    def release_encoders(self) -> None:
        """Free the text encoders' memory; no prompt can be encoded after it."""
        release_encoders(self.pipeline)

    def noise(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Standard normal latents (N, C, h, w); packed, they are what the pipeline draws from the same seed."""
        channels = self.transformer.config.in_channels // _PACKED**2
        shape = (num_images, channels, self._latent_side, self._latent_side)
        return torch.randn(shape, generator=generator).to(self.device)

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call, shifted by the resolution where the scheduler says so.

        dev and Krea: σ' = e^μ/(e^μ + 1/σ − 1), μ linear in the number of image tokens. schnell: not shifted.
        """
        scheduler, num_tokens = self.pipeline.scheduler, (self._latent_side // _PACKED) ** 2
        return shifted_sigmas(scheduler, num_steps, resolution_shift(scheduler, num_tokens))

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ; the guidance scale is an input of dev and Krea.

        Raises ValueError for a scale above 1 if the model takes none.
        """
        batch, height, width = len(latents), latents.shape[2] // _PACKED, latents.shape[3] // _PACKED
        text = embeddings.rows(rows)
        predicted = self.transformer(
            hidden_states=to_tokens(latents, _PACKED),
            encoder_hidden_states=text["tokens"],
            pooled_projections=text["pooled"],
            timestep=torch.full((batch,), sigma, dtype=torch.float32, device=latents.device),
            guidance=self._guidance(guidance_scale, latents),
            img_ids=token_positions(height, width, latents.device),
            txt_ids=torch.zeros(text["tokens"].shape[1], 3, device=latents.device),
            return_dict=False,
        )[0]
        return from_tokens(predicted, height, width, _PACKED)

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return decode_latents(self.pipeline.vae, latents)

    def _guidance(self, scale: float, latents: Tensor) -> Tensor | None:
        """The transformer's guidance input (B,), if it has one."""
        if self.transformer.config.guidance_embeds:
            return torch.full((len(latents),), scale, dtype=torch.float32, device=latents.device)
        if scale > 1:
            raise ValueError(
                f"The guidance scale is {scale:g}, but this FLUX.1 model takes none (schnell does not); set "
                "sampling.guidance_scale and evaluation.guidance_scale to 1."
            )
        return None
