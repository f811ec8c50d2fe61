"""Text-to-image models the engine can tune: one diffusers adapter a file.

To add one: a file here with a class that fits `TextToImage`, a line in `MODELS`, a name in `ModelName`
(engine/settings/model.py) and its facts in `MODEL_INFO` (engine/catalogue/models.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.models import qwen_image, z_image
from engine.models.base import PromptEmbeddings, TextToImage
from engine.models.chroma import Chroma
from engine.models.flux import Flux
from engine.models.flux2 import Flux2
from engine.models.flux2_klein import Flux2Klein
from engine.models.hunyuan_image import HunyuanImage
from engine.models.lumina2 import Lumina2
from engine.models.pipeline_model import PipelineModel
from engine.models.qwen_image import QwenImage
from engine.models.sana import Sana
from engine.models.source import OWN_WEIGHTS, base_in_words, model_folder, pinned
from engine.models.stable_diffusion_3 import StableDiffusion3
from engine.models.starting_point import start_from
from engine.models.tiling import tiling_of
from engine.models.z_image import ZImage
from engine.settings import ModelName, ModelSettings

__all__ = [
    "MODELS", "OWN_WEIGHTS", "PromptEmbeddings", "TextToImage", "base_in_words", "guidance_arguments", "load_model",
    "model_folder", "pinned",
]  # fmt: skip

MODELS: dict[ModelName, Callable[[Path, ModelSettings], PipelineModel]] = {
    "builtin": StableDiffusion3.from_folder,
    "flux": Flux.from_folder,
    "sd3": StableDiffusion3.from_folder,
    "chroma": Chroma.from_folder,
    "lumina2": Lumina2.from_folder,
    "qwen_image": QwenImage.from_folder,
    "z_image": ZImage.from_folder,
    "sana": Sana.from_folder,
    "hunyuan_image": HunyuanImage.from_folder,
    "flux2": Flux2.from_folder,
    "flux2_klein": Flux2Klein.from_folder,
}
# What a plain pipeline call is told for a guidance scale, where that is not `guidance_scale`.
GUIDANCE_ARGUMENTS: dict[ModelName, Callable[[float], dict[str, Any]]] = {
    "qwen_image": qwen_image.guidance_arguments,
    "z_image": z_image.guidance_arguments,
    # By default SANA draws at the nearest of its own sizes, and scales.
    "sana": lambda scale: {"guidance_scale": scale, "use_resolution_binning": False},
    # Of the distilled model; the other has its scale in its guider (engine/models/plain_calls.py).
    "hunyuan_image": lambda scale: {"distilled_guidance_scale": scale},
}


def load_model(model: ModelSettings) -> PipelineModel:
    """The model the settings name, on the CPU, with the weights it starts from.

    Raises ValueError if it cannot be had, or is not of that family, or what it is to start from does not fit, or it
    cannot decode in such tiles.
    """
    folder = model_folder(model)
    tiling = None if model.vae_tile is None else tiling_of(folder, model.vae_tile)
    loaded = MODELS[model.name](folder, model)
    if tiling is not None:
        tiling.apply(loaded.pipeline.vae)
    if model.start_from is not None:
        start_from(Path(model.start_from), loaded.transformer, folder)
    return loaded


def guidance_arguments(name: ModelName, guidance_scale: float) -> dict[str, Any]:
    """Arguments by which a plain diffusers call draws with the guidance that `velocity` follows at this scale."""
    if name in GUIDANCE_ARGUMENTS:
        return GUIDANCE_ARGUMENTS[name](guidance_scale)
    return {"guidance_scale": guidance_scale}
