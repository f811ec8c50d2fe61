"""Lumina-Image 2.0, on diffusers' own pipeline.

Its time runs the other way, from 0 (noise) to 1 (image), and so does what it predicts: x0 − ε, the negative of the
engine's velocity. Guidance is classifier-free, and the guided prediction has the norm of that with the prompt, row by
row of the latents, as in the plain call. That call's `cfg_trunc_ratio` is left at 1: guidance in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import Lumina2Pipeline
from torch import Tensor

from engine.models.base import PromptEmbeddings
from engine.models.masks import cut_padding
from engine.models.pipeline_model import PipelineModel
from engine.models.pipelines import (
    resolution_shift,
    shifted_sigmas,
)


class Lumina2(PipelineModel):
    """Adapter of a Lumina2Pipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = the transformer's own, 1024 for the published one.
    """

    pipeline_class: type = Lumina2Pipeline
    lora_targets: Sequence[str] = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3",
    )  # fmt: skip

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: Gemma's tokens and their mask, as long as the longest prompt."""
        tokens, mask, empty_tokens, empty_mask = self.pipeline.encode_prompt(list(prompts), device=self.device)
        texts, empty = cut_padding(tokens, mask), cut_padding(empty_tokens[:1], empty_mask[:1])
        return PromptEmbeddings({"tokens": texts[0], "mask": texts[1]}, {"tokens": empty[0], "mask": empty[1]})

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call.

        Where the scheduler shifts by the resolution, that call takes the number of channels for the number of tokens.
        """
        scheduler = self.pipeline.scheduler
        return shifted_sigmas(scheduler, num_steps, resolution_shift(scheduler, self.transformer.config.in_channels))

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with classifier-free guidance where guidance_scale > 1."""
        if guidance_scale <= 1:
            return self._predict(latents, sigma, embeddings.rows(rows))
        empty, full = self._predict_both(latents, sigma, embeddings, rows)
        guided = empty + guidance_scale * (full - empty)
        return guided * (full.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        time = 1 - torch.full((len(latents),), sigma, dtype=torch.float32, device=latents.device)
        predicted = self.transformer(
            hidden_states=latents,
            timestep=time,
            encoder_hidden_states=text["tokens"],
            encoder_attention_mask=text["mask"],
            return_dict=False,
        )[0]
        return -predicted.float()
