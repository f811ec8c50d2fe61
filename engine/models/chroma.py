"""Chroma, a FLUX.1 schnell without its guidance and pooled text, trained for classifier-free guidance.

Text is T5's alone, always 512 tokens of it, with the mask that Chroma was trained with: the prompt's tokens and the
first of padding. diffusers 0.42 hands that mask to attention as numbers, 1 or 0 that are added to the logits, so what
it masks it only weakens (by e). The adapter draws what the plain pipeline draws, and passes on what `encode_prompt`
gives, whole: once that is a mask of true and false, it masks here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import ChromaPipeline
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor, nn

from engine.models.base import JOINT_ATTENTION_LORA_TARGETS, PromptEmbeddings
from engine.models.checkpointing import Mend, mended_checkpoints
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


class Chroma:
    """Adapter of a ChromaPipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
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
        return cls(load_pipeline(ChromaPipeline, folder, settings), settings.resolution)

    def to(self, device: torch.device) -> None:
        """Move every part to a device."""
        self.pipeline.to(device)
        self.device = device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: T5's tokens (P, 512, D), and their mask (P, 512)."""
        tokens, _, mask, empty_tokens, _, empty_mask = self.pipeline.encode_prompt(list(prompts), device=self.device)
        return PromptEmbeddings({"tokens": tokens, "mask": mask}, {"tokens": empty_tokens[:1], "mask": empty_mask[:1]})

    def release_encoders(self) -> None:
        """Free the text encoder's memory; no prompt can be encoded after it."""
        release_encoders(self.pipeline)

    def noise(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Standard normal latents (N, C, h, w); packed, they are what the pipeline draws from the same seed."""
        channels = self.transformer.config.in_channels // _PACKED**2
        shape = (num_images, channels, self._latent_side, self._latent_side)
        return torch.randn(shape, generator=generator).to(self.device)

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call, shifted or bent as the scheduler's config says."""
        scheduler, num_tokens = self.pipeline.scheduler, (self._latent_side // _PACKED) ** 2
        return shifted_sigmas(scheduler, num_steps, resolution_shift(scheduler, num_tokens))

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with classifier-free guidance where guidance_scale > 1."""
        if guidance_scale <= 1:
            return self._predict(latents, sigma, embeddings.rows(rows))
        text = embeddings.guided_rows(rows)
        empty, full = self._predict(torch.cat([latents, latents]), sigma, text).chunk(2)
        return empty + guidance_scale * (full - empty)

    def _predict(self, latents: Tensor, sigma: float, text: dict[str, Tensor]) -> Tensor:
        batch, height, width = len(latents), latents.shape[2] // _PACKED, latents.shape[3] // _PACKED
        tokens = to_tokens(latents, _PACKED)
        mask = torch.cat([text["mask"], text["mask"].new_ones(batch, tokens.shape[1])], dim=1)
        with mended_checkpoints(self.transformer, _masked(mask)):
            predicted = self.transformer(
                hidden_states=tokens,
                encoder_hidden_states=text["tokens"],
                timestep=torch.full((batch,), sigma, dtype=torch.float32, device=latents.device),
                img_ids=token_positions(height, width, latents.device),
                txt_ids=torch.zeros(text["tokens"].shape[1], 3, device=latents.device),
                attention_mask=mask,
                return_dict=False,
            )[0]
        return from_tokens(predicted, height, width, _PACKED)

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return decode_latents(self.pipeline.vae, latents)


def _masked(mask: Tensor) -> Mend:
    """Gives single blocks the mask (B, L), which diffusers forgets under gradient checkpointing."""

    def with_mask(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        is_forgotten = isinstance(block, ChromaSingleTransformerBlock) and len(inputs) == 3
        return (*inputs, mask) if is_forgotten else inputs

    return with_mask
