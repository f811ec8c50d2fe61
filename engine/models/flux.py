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

import torch
from diffusers import FluxPipeline
from torch import Tensor

from engine.models.base import JOINT_ATTENTION_LORA_TARGETS, PromptEmbeddings
from engine.models.pipeline_model import PipelineModel
from engine.models.tokens import from_tokens, to_tokens, token_positions


class Flux(PipelineModel):
    """Adapter of a FluxPipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoders, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own, 1024 with FLUX.1's autoencoder.
    """

    pipeline_class: type = FluxPipeline
    takes_packed = True
    lora_targets: Sequence[str] = JOINT_ATTENTION_LORA_TARGETS

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: T5's tokens, and CLIP's pooled text."""
        tokens, pooled, _ = self.pipeline.encode_prompt(list(prompts), device=self.device)
        return PromptEmbeddings({"tokens": tokens, "pooled": pooled})

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ; the guidance scale is an input of dev and Krea.

        Raises ValueError for a scale above 1 if the model takes none.
        """
        height, width = latents.shape[2] // self.packed, latents.shape[3] // self.packed
        text = embeddings.rows(rows)
        predicted = self.transformer(
            hidden_states=to_tokens(latents, self.packed),
            encoder_hidden_states=text["tokens"],
            pooled_projections=text["pooled"],
            timestep=self._times(latents, sigma) / 1000,
            guidance=self._guidance(guidance_scale, latents),
            img_ids=token_positions(height, width, latents.device),
            txt_ids=torch.zeros(text["tokens"].shape[1], 3, device=latents.device),
            return_dict=False,
        )[0]
        return from_tokens(predicted, height, width, self.packed)

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
