"""HunyuanImage 2.1, on diffusers' own pipeline: text by Qwen2.5-VL, and by ByT5 whatever the prompt has in quotes.

Guidance is classifier-free, plain in every step. The published pipeline's guider is plain in its first steps; then it
projects what guidance adds and carries it from step to step (adaptive projected guidance), which is no velocity. A
plain call draws what the engine draws with `ClassifierFreeGuidance` as its guider (engine/models/plain_calls.py). The
distilled model takes the guidance scale as an input instead, at no cost; one that predicts the mean velocities of whole
steps is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import HunyuanImagePipeline
from torch import Tensor

from engine.model_checks import MEAN_VELOCITY
from engine.models.base import JOINT_ATTENTION_LORA_TARGETS, PromptEmbeddings
from engine.models.checkpointing import mended_checkpoints
from engine.models.masks import cut_padding
from engine.models.pipeline_model import PipelineModel
from engine.models.pipelines import grid_of, to_pixels


class HunyuanImage(PipelineModel):
    """Adapter of a HunyuanImagePipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoders, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own, 2048.

    Raises ValueError if the resolution is no multiple of what a latent covers (32 pixels), or if the transformer
    predicts mean velocities (MeanFlow).
    """

    pipeline_class: type = HunyuanImagePipeline
    packed = 1
    lora_targets: Sequence[str] = JOINT_ATTENTION_LORA_TARGETS

    def __init__(self, pipeline: Any, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution)
        if self.transformer.config.use_meanflow:
            raise ValueError(MEAN_VELOCITY)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: both encoders' tokens with their masks, each as long as the longest."""
        empty = None if self.transformer.config.guidance_embeds else self._encode([""])
        return PromptEmbeddings(self._encode(prompts), empty)

    def _encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens, mask, glyphs, glyph_mask = self.pipeline.encode_prompt(
            list(prompts), device=self.device, batch_size=len(prompts)
        )
        (tokens, mask), (glyphs, glyph_mask) = cut_padding(tokens, mask), cut_padding(glyphs, glyph_mask)
        return {"tokens": tokens, "mask": mask, "glyphs": glyphs.to(tokens.dtype), "glyph_mask": glyph_mask}

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call: T equal steps, shifted as the scheduler's config says."""
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1])
        return grid_of(scheduler)

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ; above 1 the guidance scale is classifier-free guidance's, or an input."""
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(latents),), guidance_scale, dtype=torch.float32, device=latents.device) * 1000
            return self._predict(latents, sigma, embeddings.rows(rows), guidance)
        return super().velocity(latents, sigma, embeddings, rows, guidance_scale)

    def _predict(
        self, latents: Tensor, sigma: float, text: Mapping[str, Tensor], guidance: Tensor | None = None
    ) -> Tensor:
        with mended_checkpoints(self.transformer):
            predicted = self.transformer(
                hidden_states=latents,
                timestep=self._times(latents, sigma),
                encoder_hidden_states=text["tokens"],
                encoder_attention_mask=text["mask"],
                encoder_hidden_states_2=text["glyphs"],
                encoder_attention_mask_2=text["glyph_mask"],
                guidance=guidance,
                return_dict=False,
            )[0]
        return predicted.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        vae = self.pipeline.vae
        return to_pixels(vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0])
