"""FLUX.2 klein (base and distilled), on diffusers' own pipeline: FLUX.2's transformer in small, with Qwen3's text.

The base models follow classifier-free guidance. The distilled ones, drawn in four steps, take no guidance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor

from engine.models.base import PromptEmbeddings
from engine.models.flux2 import Flux2
from engine.models.pipeline_model import PipelineModel


class Flux2Klein(Flux2):
    """Adapter of a Flux2KleinPipeline; arguments as of `Flux2`."""

    pipeline_class: type = Flux2KleinPipeline

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: tokens (P, L, D)."""
        tokens, _ = self.pipeline.encode_prompt(list(prompts), device=self.device)
        empty, _ = self.pipeline.encode_prompt([""], device=self.device)
        return PromptEmbeddings({"tokens": tokens}, {"tokens": empty})

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, 4·C, h, w) at one σ, with classifier-free guidance where guidance_scale > 1.

        Raises ValueError for a scale above 1 if the model is distilled.
        """
        if guidance_scale > 1 and self.pipeline.config.is_distilled:
            raise ValueError(
                f"The guidance scale is {guidance_scale:g}, but this FLUX.2 klein is distilled and takes none; set "
                "sampling.guidance_scale and evaluation.guidance_scale to 1, or tune a base model."
            )
        return PipelineModel.velocity(self, latents, sigma, embeddings, rows, guidance_scale)
