"""Where a loaded model's parts go, and in how many bits: `compute.offload`, `model.quantisation`."""

from __future__ import annotations

import torch

from engine.models.base import TextToImage
from engine.models.offloading import Offloaded
from engine.models.pipeline_model import PipelineModel
from engine.models.quantisation import quantise
from engine.settings import RunSettings


def place(model: TextToImage, settings: RunSettings, device: torch.device) -> TextToImage:
    """The model, ready to encode prompts on the device.

    Offloaded, it has only its encoders there, for as long as they work: the transformer may wait until they are gone.
    """
    if settings.compute.offload:
        assert isinstance(model, PipelineModel), "what load_model gives"
        return Offloaded(model, device)
    place_transformer(model, settings, device)
    return model


def place_transformer(model: TextToImage, settings: RunSettings, device: torch.device) -> None:
    """Have the transformer on the device, in the bits it is to be held in; nothing happens where it is so already."""
    quantise(model.transformer, settings.model.quantisation, device)
    model.to(device)
