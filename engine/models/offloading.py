"""Parts of a pipeline on the GPU only while they work: `compute.offload`.

The transformer stays. Text encoders and autoencoder rest in the CPU's memory; the last of them that worked leaves when
another part does, so each comes once a phase, however many batches a phase has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.models.base import PromptEmbeddings
from engine.models.pipeline_model import PipelineModel

_REST = torch.device("cpu")


class Offloaded:
    """A `TextToImage` whose text encoders and autoencoder come to the device when they are asked for.

    Args:
        model: the model, all of it on the CPU.
        device: where its parts work. The transformer comes with `to`, so that prompts can be encoded before it.
    """

    def __init__(self, model: PipelineModel, device: torch.device) -> None:
        self.transformer: nn.Module = model.transformer
        self.lora_targets: Sequence[str] = model.lora_targets
        self._model = model
        self._model.device = device
        self._here: list[nn.Module] = []

    def to(self, device: torch.device) -> None:
        """Move the transformer to a device; the others follow when they work."""
        self._call()
        self._model.device = device
        self.transformer.to(device)

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts."""
        parts: dict[str, Any] = self._model.pipeline.components
        self._call(*(part for name, part in parts.items() if name.startswith("text_encoder") and part is not None))
        return self._model.encode(prompts)

    def release_encoders(self) -> None:
        """Free the text encoders' memory; no prompt can be encoded after it."""
        self._call()
        self._model.release_encoders()

    def noise(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Initial latents (N, C, h, w), as the model's."""
        return self._model.noise(generator, num_images)

    def sigmas(self, num_steps: int) -> Tensor:
        """The family's own σ grid (T+1,)."""
        return self._model.sigmas(num_steps)

    def velocity(
        self, latents: Tensor, sigma: float, embeddings: PromptEmbeddings, rows: Tensor, guidance_scale: float
    ) -> Tensor:
        """Velocity (B, C, h, w), as the model's."""
        self._call()
        return self._model.velocity(latents, sigma, embeddings, rows, guidance_scale)

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (N, H, W, 3) of final latents."""
        self._call(self._model.pipeline.vae)
        return self._model.decode(latents)

    def _call(self, *parts: nn.Module) -> None:
        """Have these parts on the device, and no others but the transformer."""
        for part in [part for part in self._here if part not in parts]:
            part.to(_REST)
            self._here.remove(part)
        for part in [part for part in parts if part not in self._here]:
            self._here.append(part)
            part.to(self._model.device)
