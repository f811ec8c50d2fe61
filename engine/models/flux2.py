"""FLUX.2 (dev and what was tuned from it), on diffusers' own pipeline.

The engine's latents are the transformer's, (N, 4·C, h, w): squares of 2×2 of the autoencoder's latents, normalised by
its running statistics. They become tokens only around the transformer.

Guidance is what the model was distilled for: the scale is an input, at no cost. There is no classifier-free guidance,
and so no empty prompt. Every prompt has the same number of tokens: the pipeline gives the padding to the transformer
too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor
from torch.nn import functional

from engine.models.base import PromptEmbeddings
from engine.models.pipeline_model import PipelineModel
from engine.models.pipelines import shifted_sigmas, to_pixels
from engine.models.tokens import from_tokens, to_tokens, token_positions

# Attention and feed-forward; the single blocks' are one layer in and one out, the latter added by its full name, since
# the double blocks' `to_out` is a list.
_LORA_TARGETS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
    "attn.to_qkv_mlp_proj",
)  # fmt: skip


class Flux2(PipelineModel):
    """Adapter of a Flux2Pipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own, 1024 with FLUX.2's autoencoder.
    """

    pipeline_class: type = Flux2Pipeline

    def __init__(self, pipeline: Any, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution)
        num_single = len(self.transformer.single_transformer_blocks)
        single = (f"single_transformer_blocks.{i}.attn.to_out" for i in range(num_single))
        self.lora_targets = (*_LORA_TARGETS, *single)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: tokens (P, L, D)."""
        tokens, _ = self.pipeline.encode_prompt(list(prompts), device=self.device)
        return PromptEmbeddings({"tokens": tokens})

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call, shifted by the resolution and by the number of steps."""
        mu = compute_empirical_mu(image_seq_len=self.latent_side**2, num_steps=num_steps)
        return shifted_sigmas(self.pipeline.scheduler, num_steps, mu)

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, 4·C, h, w) at one σ; the guidance scale is an input.

        Raises ValueError for a scale above 1 if the model takes none.
        """
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(latents),), guidance_scale, dtype=torch.float32, device=latents.device)
        elif guidance_scale > 1:
            raise ValueError(
                f"The guidance scale is {guidance_scale:g}, but this FLUX.2 model takes none; set "
                "sampling.guidance_scale and evaluation.guidance_scale to 1."
            )
        return self._predict(latents, sigma, embeddings.rows(rows), guidance)

    def _predict(
        self, latents: Tensor, sigma: float, text: Mapping[str, Tensor], guidance: Tensor | None = None
    ) -> Tensor:
        height, width = latents.shape[2:]
        predicted = self.transformer(
            hidden_states=to_tokens(latents, 1),
            encoder_hidden_states=text["tokens"],
            timestep=self._times(latents, sigma) / 1000,
            img_ids=functional.pad(token_positions(height, width, latents.device), (0, 1)),
            txt_ids=_text_ids(text["tokens"].shape[1], latents.device),
            guidance=guidance,
            return_dict=False,
        )[0]
        return from_tokens(predicted, height, width, 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3), by the statistics of the autoencoder's batch normalisation."""
        vae = self.pipeline.vae
        mean, variance = (tensor.view(1, -1, 1, 1) for tensor in (vae.bn.running_mean, vae.bn.running_var))
        own = latents * torch.sqrt(variance + vae.config.batch_norm_eps) + mean
        return to_pixels(vae.decode(functional.pixel_shuffle(own, self.packed), return_dict=False)[0])

    def _side_of(self, resolution: int | None) -> int:
        """The transformer's latents a side of images of `resolution` pixels a side."""
        return super()._side_of(resolution) // self.packed


def _text_ids(length: int, device: torch.device) -> Tensor:
    """Positions (L, 4) of the text tokens: 0, 0, 0, place."""
    ids = torch.zeros(length, 4, device=device)
    ids[:, 3] = torch.arange(length, device=device)
    return ids
