"""What the adapters of diffusers pipelines have in common; a family says what it does otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from engine.models.base import PromptEmbeddings
from engine.models.pipelines import (
    decode_latents,
    freeze,
    keep_channels_last,
    load_pipeline,
    release_encoders,
    resolution_shift,
    shifted_sigmas,
)
from engine.settings import ModelSettings


class PipelineModel:
    """A `TextToImage` on a diffusers pipeline. Its families add `encode` and `_predict`, and override what differs.

    Args:
        pipeline: the pipeline; parts that are not called (encoders, autoencoder) may be missing.
        resolution: pixels a side; None = the family's own.

    Attributes:
        pipeline_class: the pipeline's class, which a folder must hold.
        lora_targets: the layers that a LoRA of the blocks adapts.
        packed: latents a side of what the transformer takes as one token.
        takes_packed: the transformer's input channels are those of a token, not of a latent.
    """

    pipeline_class: type
    lora_targets: Sequence[str]
    packed: int = 2
    takes_packed: bool = False

    def __init__(self, pipeline: Any, resolution: int | None = None) -> None:
        self.pipeline = pipeline
        freeze(pipeline)
        self.transformer: Any = pipeline.transformer
        self.device = torch.device("cpu")
        self.latent_side = self._side_of(resolution)

    @classmethod
    def from_folder(cls, folder: Path, settings: ModelSettings) -> Self:
        """The pipeline in a folder as `save_pretrained` writes it. Raises ValueError if it is another family's."""
        return cls(load_pipeline(cls.pipeline_class, folder, settings), settings.resolution)

    def to(self, device: torch.device) -> None:
        """Move every part to a device."""
        self.pipeline.to(device)
        if device.type == "cpu" and self.pipeline.vae is not None:
            keep_channels_last(self.pipeline.vae)
        self.device = device

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts."""
        raise NotImplementedError

    def release_encoders(self) -> None:
        """Free the text encoders' memory; no prompt can be encoded after it."""
        release_encoders(self.pipeline)

    def noise(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Standard normal latents (N, C, h, w); packed, they are what the pipeline draws from the same seed."""
        shape = (num_images, self._num_channels, self.latent_side, self.latent_side)
        return torch.randn(shape, generator=generator).to(self.device)

    def sigmas(self, num_steps: int) -> Tensor:
        """The grid (T+1,) of a plain pipeline call, shifted by the resolution where the scheduler says so."""
        scheduler, num_tokens = self.pipeline.scheduler, (self.latent_side // self.packed) ** 2
        return shifted_sigmas(scheduler, num_steps, resolution_shift(scheduler, num_tokens))

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w) at one σ, with classifier-free guidance where guidance_scale > 1."""
        if guidance_scale <= 1:
            return self._predict(latents, sigma, embeddings.rows(rows))
        empty, full = self._predict_both(latents, sigma, embeddings, rows)
        return empty + guidance_scale * (full - empty)

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return decode_latents(self.pipeline.vae, latents)

    def _predict(self, latents: Tensor, sigma: float, text: Mapping[str, Tensor]) -> Tensor:
        """What the transformer predicts of latents (B, …) at one σ for texts of B rows, float32."""
        raise NotImplementedError

    def _predict_both(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predictions for the empty prompt, and for the images' own."""
        empty, full = self._predict(torch.cat([latents, latents]), sigma, embeddings.guided_rows(rows)).chunk(2)
        return empty, full

    def _times(self, latents: Tensor, sigma: float) -> Tensor:
        """The scheduler's times (B,) at σ, float32 and never truncated: σ·1000, or as many as its config says."""
        times = torch.full((len(latents),), sigma, dtype=torch.float32, device=latents.device)
        return times * self.pipeline.scheduler.config.num_train_timesteps

    @property
    def _num_channels(self) -> int:
        """Channels C of the latents."""
        channels: int = self.transformer.config.in_channels
        return channels // self.packed**2 if self.takes_packed else channels

    @property
    def _own_side(self) -> int:
        """Latents a side where the settings name no resolution."""
        side: int = self.pipeline.default_sample_size
        return side

    @property
    def _square(self) -> int:
        """Pixels a side of the smallest image: those of a token."""
        pixels: int = self.pipeline.vae_scale_factor * self.packed
        return pixels

    def _side_of(self, resolution: int | None) -> int:
        """Latents a side of images of `resolution` pixels a side. Raises ValueError if the model cannot draw those."""
        if resolution is None:
            return self._own_side
        if resolution % self._square:
            raise ValueError(
                f"model.resolution is {resolution}, but this model draws multiples of {self._square} pixels a side; "
                "choose one of those, or leave it empty."
            )
        side: int = resolution // self.pipeline.vae_scale_factor
        return side
