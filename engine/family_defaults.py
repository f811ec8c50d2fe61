"""Settings that suit a model family: what changes when a run is started with another one (free of torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from engine.catalogue import MODEL_INFO
from engine.pipeline_folders import read_index, read_json
from engine.settings import ModelName, RunSettings
from engine.settings_text import parse_settings

# Z-Image Turbo's scheduler; the base model's shift is 6.
_TURBO_SHIFT = 3.0


def for_family(
    settings: RunSettings, name: ModelName, *, distilled: bool = False, precision: Literal["float32", "bfloat16"]
) -> RunSettings:
    """The settings with another family's guidance, steps, grid and memory; as they are for the built-in model.

    Composition judges the built-in model's scenes alone, so another family starts with vividness in its place.
    Raises SettingsError if they cannot be told to the family.
    """
    info = MODEL_INFO[name]
    usual = info.distilled if distilled and info.distilled is not None else info.usual
    data = settings.model_dump(mode="json")
    data["model"] = {"name": name}
    if usual is None:
        return parse_settings(data)
    data["model"]["precision"] = precision
    data["sampling"] |= {
        "guidance_scale": usual.guidance_scale, "shift": usual.shift, "num_steps": usual.training_steps,
    }  # fmt: skip
    data["evaluation"] |= {"guidance_scale": usual.guidance_scale, "num_steps": usual.num_steps}
    data["tuning"] |= {"gradient_checkpointing": True, "layers": "blocks"}
    _fit_window(data, usual.training_steps)
    others = [reward for reward in data["rewards"] if reward["name"] != "composition"]
    data["rewards"] = others or [{"name": "vividness"}]
    return parse_settings(data)


def _fit_window(data: dict[str, Any], num_steps: int) -> None:
    """Make the window, and DiffusionNFT's noise levels, no longer than the steps there are."""
    window = data["window"]
    window["size"] = min(window["size"], num_steps - 1)
    limit = max(0, num_steps - 2 - window["size"])
    window["start"] = min(window["start"], limit)
    window["last"] = None if window["last"] is None else min(window["last"], limit)
    data["nft"]["timesteps_per_image"] = min(data["nft"]["timesteps_per_image"], num_steps)


def is_distilled(folder: Path, name: ModelName) -> bool:
    """Whether a pipeline folder holds one of the family's distilled models, where its files tell. Raises ValueError."""
    match name:
        case "flux":
            return not _config(folder, "transformer").get("guidance_embeds")
        case "z_image":
            return _config(folder, "scheduler").get("shift") == _TURBO_SHIFT
        case "hunyuan_image":
            return bool(_config(folder, "transformer").get("guidance_embeds"))
        case "flux2_klein":
            return bool(read_index(folder).get("is_distilled"))
    return False


def takes_no_guidance(folder: Path, name: ModelName) -> bool:
    """Whether the folder's model refuses a guidance scale above 1. Raises ValueError."""
    if name == "flux2":
        return not _config(folder, "transformer").get("guidance_embeds", True)
    return name in ("flux", "flux2_klein") and is_distilled(folder, name)


def _config(folder: Path, part: str) -> dict[str, Any]:
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    return read_json(folder / part / file)
