"""Z-Image (base and Turbo), on diffusers' own pipeline.

The guidance scale is the pipeline's own, s: v + s·(v − v of the empty prompt), which the pipeline leaves out at 0 and
the engine at 1, where every family has no guidance; Turbo is drawn without. The transformer predicts −v, and its time
runs from 0 at noise to 1 at the image.

Prompts have as many tokens as they need; the transformer takes each one's tokens without padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from engine.models.base import PromptEmbeddings, stack_padded
from engine.models.pipelines import (
    decode_latents,
    freeze,
    load_pipeline,
    release_encoders,
    resolution_shift,
    shifted_sigmas,
)
from engine.settings import ModelSettings

_PACKED = 2  # latents a side of a token
_SIDE = 1024  # pixels, where a pipeline call names none


class ZImage:
    """Adapter of a ZImagePipeline.

    Args:
        pipeline: the pipeline; parts that are not called (encoder, autoencoder) may be missing.
        resolution: pixels a side; None = the pipeline's own 1024.
    """

    lora_targets: Sequence[str] = (
        "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0",
        "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
    )  # fmt: skip

    def __init__(self, pipeline: Any, resolution: int | None = None) -> None:
        self.pipeline = pipeline
        freeze(pipeline)
        self.transformer: Any = pipeline.transformer
        self.device = torch.device("cpu")
        self._latent_side = (resolution or _SIDE) // pipeline.vae_scale_factor

    @classmethod
    def from_folder(cls, folder: Path, settings: ModelSettings) -> Self:
        """The pipeline in a folder as `save_pretrained` writes it. Raises ValueError if it is another family's."""
        return cls(load_pipeline(ZImagePipeline, folder, settings), settings.resolution)

    def to(self, device: torch.device) -> None:
        """Move every part to a device."""
        self.pipeline.to(device)
        self.device = device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts: tokens (P, L, D), and which of them are no padding (P, L)."""
        return PromptEmbeddings(self._encode(prompts), self._encode([""]))

    def _encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        # A list of its own: the pipeline writes chat turns over the one that it is given.
        found, _ = self.pipeline.encode_prompt(list(prompts), device=self.device, do_classifier_free_guidance=False)
        masks = [torch.ones(1, len(tokens), dtype=torch.bool, device=tokens.device) for tokens in found]
        return {"tokens": stack_padded([tokens[None] for tokens in found]), "mask": stack_padded(masks)}

    def release_encoders(self) -> None:
        """Free the text encoder's memory; no prompt can be encoded after it."""
        release_encoders(self.pipeline)

    def noise(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Standard normal latents (N, C, h, w), as the pipeline draws them from the same seed."""
        shape = (num_images, self.transformer.in_channels, self._latent_side, self._latent_side)
        return torch.randn(shape, generator=generator).to(self.device)

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call, shifted as the scheduler says."""
        scheduler, num_tokens = self.pipeline.scheduler, (self._latent_side // _PACKED) ** 2
        return shifted_sigmas(scheduler, num_steps, resolution_shift(scheduler, num_tokens))

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with the pipeline's classifier-free guidance where guidance_scale > 1."""
        if guidance_scale <= 1:
            return self._predict(latents, sigma, embeddings.rows(rows))
        text = embeddings.guided_rows(rows)
        empty, full = self._predict(torch.cat([latents, latents]), sigma, text).chunk(2)
        return full + guidance_scale * (full - empty)

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        lengths = text["mask"].sum(1).tolist()
        time = 1 - torch.full((len(latents),), sigma, dtype=torch.float32, device=latents.device)
        images = self.transformer(
            list(latents.unsqueeze(2)),  # an image is a film of one frame
            time,
            [tokens[:length] for tokens, length in zip(text["tokens"], lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(images)).squeeze(2).float()

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return decode_latents(self.pipeline.vae, latents)


def guidance_arguments(guidance_scale: float) -> dict[str, Any]:
    """How a plain pipeline call is asked for this guidance."""
    return {"guidance_scale": guidance_scale if guidance_scale > 1 else 0.0}
