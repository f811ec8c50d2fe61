"""SANA (and SANA 1.5), on diffusers' own pipeline: linear attention over the latents of a deep-compression autoencoder.

Published folders name a second-order solver (DPM-Solver++) as their scheduler. The engine takes its grid, and Euler's
steps on it: what that scheduler gives with `solver_order=1`. Such schedulers tell the transformer the time in whole
thousandths, rounded down, and so does the adapter; under `FlowMatchEulerDiscreteScheduler` the time is exact.

A prompt is encoded after the instruction to embellish it that is the plain call's default.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor

from engine.models.base import PromptEmbeddings
from engine.models.masks import cut_padding
from engine.models.pipeline_model import PipelineModel
from engine.models.pipelines import grid_of, to_pixels

_INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(PipelineModel):
    """Adapter of a SanaPipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = what the transformer was trained at.

    Raises ValueError if the resolution is no multiple of what a latent covers (32 pixels).
    """

    pipeline_class: type = SanaPipeline
    packed = 1
    lora_targets: Sequence[str] = (
        "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
        "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
    )  # fmt: skip

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: Gemma's tokens and their mask, as long as the longest prompt."""
        tokens, mask, empty_tokens, empty_mask = self.pipeline.encode_prompt(
            list(prompts), device=self.device, complex_human_instruction=_INSTRUCTION
        )
        texts, empty = cut_padding(tokens, mask), cut_padding(empty_tokens[:1], empty_mask[:1])
        return PromptEmbeddings({"tokens": texts[0], "mask": texts[1]}, {"tokens": empty[0], "mask": empty[1]})

    def sigmas(self, num_steps: int) -> Tensor:
        """The scheduler's own grid (T+1,), as a plain pipeline call with num_inference_steps = T uses it."""
        self.pipeline.scheduler.set_timesteps(num_steps)
        return grid_of(self.pipeline.scheduler)

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        predicted = self.transformer(
            latents,
            encoder_hidden_states=text["tokens"],
            encoder_attention_mask=text["mask"],
            timestep=self._times(latents, sigma) * self.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return predicted[:, : latents.shape[1]].float()  # a variance, where one was learned, comes after

    def _times(self, latents: Tensor, sigma: float) -> Tensor:
        """The scheduler's times (B,) at σ."""
        times = super()._times(latents, sigma)
        return times if isinstance(self.pipeline.scheduler, FlowMatchEulerDiscreteScheduler) else times.long()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        vae = self.pipeline.vae
        return to_pixels(vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0])

    @property
    def _own_side(self) -> int:
        """Latents a side that the transformer was trained at."""
        side: int = self.transformer.config.sample_size
        return side
