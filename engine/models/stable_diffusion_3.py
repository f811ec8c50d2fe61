"""Stable Diffusion 3 family (SD3, SD3.5 and the built-in model), on diffusers' own pipeline.

Deviation from the pipeline's arithmetic: zero padding in T5's place is computed as one counted token
(engine/models/padding.py), equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from engine.models.base import JOINT_ATTENTION_LORA_TARGETS, PromptEmbeddings
from engine.models.padding import count_padding, shorten_padding
from engine.models.pipeline_model import PipelineModel
from engine.models.pipelines import check_folder, grid_of, open_pipeline, resolution_shift
from engine.settings import ModelSettings

# Of SD3.5 medium: its first blocks have a second attention, of the image tokens alone.
_SECOND_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


class StableDiffusion3(PipelineModel):
    """Adapter of a StableDiffusion3Pipeline.

    Args:
        pipeline: the pipeline; parts that are not called may be missing.
        resolution: pixels a side; None = what the transformer was made for.

    Raises ValueError if the model cannot draw at that resolution.
    """

    pipeline_class: type = StableDiffusion3Pipeline
    lora_targets: Sequence[str] = JOINT_ATTENTION_LORA_TARGETS

    def __init__(self, pipeline: Any, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution)
        if self.transformer.config.dual_attention_layers:
            self.lora_targets = (*JOINT_ATTENTION_LORA_TARGETS, *_SECOND_ATTENTION)
        self._num_padding = 1

    @classmethod
    def from_folder(cls, folder: Path, settings: ModelSettings) -> Self:
        """The pipeline of `sd3`, or the built-in model's: so small that it needs none of the care for memory."""
        if settings.name == "sd3":
            return super().from_folder(folder, settings)
        check_folder(cls.pipeline_class, folder, settings)
        return cls(open_pipeline(folder, torch.float32), settings.resolution)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts, their zero padding cut to one counted token."""
        tokens, empty_tokens, pooled, empty_pooled = self.pipeline.encode_prompt(
            list(prompts), None, None, device=self.device, negative_prompt=""
        )
        both, count = shorten_padding(torch.cat([empty_tokens[:1], tokens]))
        return PromptEmbeddings(
            {"tokens": both[1:], "pooled": pooled}, {"tokens": both[:1], "pooled": empty_pooled[:1]}, count
        )

    def sigmas(self, num_steps: int) -> Tensor:
        """The scheduler's own grid (T+1,), as a plain pipeline call with num_inference_steps = T uses it."""
        scheduler = self.pipeline.scheduler
        num_tokens = (self.latent_side // self.transformer.config.patch_size) ** 2
        is_shifted = scheduler.config.get("use_dynamic_shifting")
        scheduler.set_timesteps(num_steps, **({"mu": resolution_shift(scheduler, num_tokens)} if is_shifted else {}))
        return grid_of(scheduler)

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with classifier-free guidance where guidance_scale > 1."""
        if embeddings.num_padding != self._num_padding:
            self._num_padding = embeddings.num_padding
            count_padding(self.transformer, self._num_padding)
        return super().velocity(latents, sigma, embeddings, rows, guidance_scale)

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        times = self._times(latents, sigma)
        return self.transformer(latents, text["tokens"], text["pooled"], times, return_dict=False)[0].float()

    def _side_of(self, resolution: int | None) -> int:
        """Latents a side for images of `resolution` pixels a side."""
        config, pixels = self.transformer.config, self.pipeline.vae_scale_factor
        if resolution is None:
            return config.sample_size
        patch = pixels * config.patch_size
        largest = patch * config.pos_embed_max_size
        if resolution > largest or resolution % patch:
            raise ValueError(
                f"model.resolution is {resolution}, but this model draws multiples of {patch} up to {largest} pixels a "
                "side; choose one of those, or leave it empty."
            )
        return resolution // pixels
