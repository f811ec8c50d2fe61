"""Z-Image (base and Turbo), on diffusers' own pipeline.

The guidance scale is the pipeline's own, s: v + s·(v − v of the empty prompt), which the pipeline leaves out at 0 and
the engine at 1, where every family has no guidance; Turbo is drawn without. The transformer predicts −v, and its time
runs from 0 at noise to 1 at the image.

Prompts have as many tokens as they need; the transformer takes each one's tokens without padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from engine.models.base import PromptEmbeddings, stack_padded
from engine.models.pipeline_model import PipelineModel

_SIDE = 1024  # pixels, where a pipeline call names none


class ZImage(PipelineModel):
    """Adapter of a ZImagePipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own 1024.
    """

    pipeline_class: type = ZImagePipeline
    lora_targets: Sequence[str] = (
        "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0",
        "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
    )  # fmt: skip

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: tokens (P, L, D), and which of them are no padding (P, L)."""
        return PromptEmbeddings(self._encode(prompts), self._encode([""]))

    def _encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        # A list of its own: the pipeline writes chat turns over the one that it is given.
        found, _ = self.pipeline.encode_prompt(list(prompts), device=self.device, do_classifier_free_guidance=False)
        masks = [torch.ones(1, len(tokens), dtype=torch.bool, device=tokens.device) for tokens in found]
        return {"tokens": stack_padded([tokens[None] for tokens in found]), "mask": stack_padded(masks)}

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with the pipeline's classifier-free guidance where guidance_scale > 1."""
        if guidance_scale <= 1:
            return self._predict(latents, sigma, embeddings.rows(rows))
        empty, full = self._predict_both(latents, sigma, embeddings, rows)
        return full + guidance_scale * (full - empty)

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        images = self.transformer(
            list(latents.unsqueeze(2)),  # an image is a film of one frame
            (1000 - self._times(latents, sigma)) / 1000,
            [tokens[:length] for tokens, length in zip(text["tokens"], text["lengths"].tolist(), strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(images)).squeeze(2).float()

    @property
    def _num_channels(self) -> int:
        """Channels C of the latents."""
        channels: int = self.transformer.in_channels
        return channels

    @property
    def _own_side(self) -> int:
        """Latents a side where the settings name no resolution."""
        side: int = _SIDE // self.pipeline.vae_scale_factor
        return side


def guidance_arguments(guidance_scale: float) -> dict[str, Any]:
    """How a plain pipeline call is asked for this guidance."""
    return {"guidance_scale": guidance_scale if guidance_scale > 1 else 0.0}
