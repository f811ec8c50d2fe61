"""Text-to-image models the engine can tune: one diffusers adapter a file.

To add one: a file here with a class that fits `TextToImage`, a line in `MODELS`, a name in `ModelName`
(engine/settings/model.py) and its facts in `MODEL_INFO` (engine/catalogue/models.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.builtin import WEIGHTS
from engine.models import qwen_image, z_image
from engine.models.base import PromptEmbeddings, TextToImage
from engine.models.chroma import Chroma
from engine.models.flux import Flux
from engine.models.flux2 import Flux2
from engine.models.flux2_klein import Flux2Klein
from engine.models.hunyuan_image import HunyuanImage
from engine.models.lumina2 import Lumina2
from engine.models.qwen_image import QwenImage
from engine.models.sana import Sana
from engine.models.stable_diffusion_3 import StableDiffusion3
from engine.models.z_image import ZImage
from engine.settings import ModelName, ModelSettings

__all__ = ["MODELS", "PromptEmbeddings", "TextToImage", "guidance_arguments", "load_model", "model_folder"]

MODELS: dict[ModelName, Callable[[Path, ModelSettings], TextToImage]] = {
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
OWN_WEIGHTS: dict[ModelName, Path] = {"builtin": WEIGHTS}
# What a plain pipeline call is told for a guidance scale, where that is not `guidance_scale`.
GUIDANCE_ARGUMENTS: dict[ModelName, Callable[[float], dict[str, Any]]] = {
    "qwen_image": qwen_image.guidance_arguments,
    "z_image": z_image.guidance_arguments,
    # By default SANA draws at the nearest of its own sizes, and scales.
    "sana": lambda scale: {"guidance_scale": scale, "use_resolution_binning": False},
    # Of the distilled model; the other has its scale in its guider (engine/models/plain_calls.py).
    "hunyuan_image": lambda scale: {"distilled_guidance_scale": scale},
}


def model_folder(model: ModelSettings) -> Path:
    """The pipeline folder the settings name. Raises ValueError, saying what to change, if it is no pipeline folder."""
    if model.folder is None and model.name not in OWN_WEIGHTS:
        raise ValueError(
            f"The model {model.name} comes without weights; set model.folder to a folder that holds its diffusers "
            "pipeline (with model_index.json)."
        )
    folder = Path(model.folder) if model.folder else OWN_WEIGHTS[model.name]
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder} is not a diffusers pipeline folder (it has no model_index.json); check model.folder."
        )
    return folder


def load_model(model: ModelSettings) -> TextToImage:
    """The model the settings name, on the CPU. Raises ValueError if its folder is not one, or not of that family."""
    return MODELS[model.name](model_folder(model), model)


def guidance_arguments(name: ModelName, guidance_scale: float) -> dict[str, Any]:
    """Arguments by which a plain diffusers call draws with the guidance that `velocity` follows at this scale."""
    if name in GUIDANCE_ARGUMENTS:
        return GUIDANCE_ARGUMENTS[name](guidance_scale)
    return {"guidance_scale": guidance_scale}
