"""What every adapter does with its diffusers pipeline: open and freeze it, and turn latents into pixels as it would."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn
from transformers import AutoTokenizer

from engine.model_checks import check_scheduler
from engine.settings import ModelSettings

# Of an encoder that is asked for its states alone, and of text alone.
_UNUSED = re.compile(r"(^|\.)(lm_head|visual|vision_tower|multi_modal_projector)\.")


def load_pipeline(kind: type, folder: Path, settings: ModelSettings) -> Any:
    """A published family's pipeline, its frozen weights in the precision of the arithmetic, all but the autoencoder's.

    Images are decoded one at a time, unless the settings say otherwise: a megapixel takes gigabytes. Raises ValueError
    if the folder holds another class.
    """
    check_folder(kind, folder, settings)
    weights = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    pipeline = open_pipeline(folder, {"default": weights, "vae": torch.float32})
    if settings.vae_slicing:
        pipeline.vae.enable_slicing()
    return pipeline


def check_folder(kind: type, folder: Path, settings: ModelSettings) -> None:
    """Raise ValueError, saying what to change, if a pipeline folder is of another class, or steps otherwise."""
    found = _index(folder).get("_class_name")
    if found != kind.__name__:
        raise ValueError(f"{folder} holds a {found}, but {settings.name} needs a {kind.__name__}; check model.folder.")
    check_scheduler(folder)


def open_pipeline(folder: Path, dtype: torch.dtype | dict[str, torch.dtype], **parts: Any) -> Any:
    """A pipeline folder as `save_pretrained` writes it, by diffusers' own code, with these parts in place of its own.

    What that code cannot open by itself is seen to: parts that are missing on purpose, as Stable Diffusion 3's T5 often
    is, and a processor of text and images that needs torchvision, in whose place its tokenizer does all a text needs.
    """
    index = _index(folder)
    absent = {name: None for name, value in index.items() if isinstance(value, list) and not value[0]}
    named = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[0] == "transformers"}
    unusable = [name for name, kind in named.items() if _needs_more(kind)]
    replaced = dict.fromkeys(unusable)
    encoders = {
        name: _load_encoder(getattr(transformers, kind), folder / name, dtype, name)
        for name, kind in named.items()
        if name not in parts and _is_model(kind)
    }
    pipeline = DiffusionPipeline.from_pretrained(
        folder, dtype=dtype, local_files_only=True, **(absent | replaced | encoders | parts)
    )
    for name in set(unusable) - set(parts):
        pipeline.register_modules(**{name: AutoTokenizer.from_pretrained(folder / name, local_files_only=True)})
    _check_filled(pipeline, folder)
    return pipeline


def _is_model(kind: str) -> bool:
    """Whether a class of transformers is one of models."""
    found = getattr(transformers, kind, None)
    return isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)


def _load_encoder(kind: Any, folder: Path, dtype: torch.dtype | dict[str, torch.dtype], name: str) -> Any:
    """A part of transformers'. Raises ValueError where it would fill at random what a file of weights does not hold."""
    wanted = dtype.get(name, dtype["default"]) if isinstance(dtype, dict) else dtype
    part, told = kind.from_pretrained(folder, dtype=wanted, local_files_only=True, output_loading_info=True)
    # Weights tied to others are not among the missing.
    empty = sorted(key for key in told["missing_keys"] if not _UNUSED.search(key))
    if empty:
        raise _unfilled(folder, empty)
    return part


def _unfilled(folder: Path, empty: Sequence[str]) -> ValueError:
    return ValueError(
        f"{folder} does not fit its own config.json: its weights lack {len(empty)} tensors, such as {empty[0]}; "
        "download or copy it again."
    )


def _check_filled(pipeline: Any, folder: Path) -> None:
    """Raise ValueError if a file of diffusers' weights held fewer tensors than the part's configuration asks for."""
    for name, part in pipeline.components.items():
        empty = [of for of, tensor in part.named_parameters() if tensor.is_meta] if isinstance(part, nn.Module) else []
        if empty:
            raise _unfilled(folder / name, empty)


def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


def _needs_more(kind: str) -> bool:
    """Whether a processor of transformers wants a library that is not here."""
    return kind.endswith("Processor") and hasattr(getattr(transformers, kind), "_backends")


def freeze(pipeline: Any) -> None:
    """No gradients, evaluation mode and no progress bars, for every part of a pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()


def keep_channels_last(part: nn.Module) -> None:
    """Lay out the weights of image convolutions, and so what they compute, pixel by pixel: faster on a CPU.

    An autoencoder whose images are films of one frame stays as it is.
    """
    if all(parameter.ndim <= 4 for parameter in part.parameters()):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # typed for tensors alone


def release_encoders(pipeline: Any) -> None:
    """Let go of every text encoder of a pipeline."""
    for name in list(pipeline.components):
        if name.startswith("text_encoder"):
            setattr(pipeline, name, None)


def resolution_shift(scheduler: Any, num_tokens: int) -> float:
    """μ of a resolution of `num_tokens` image tokens, by the scheduler's line: σ' = e^μ/(e^μ + 1/σ − 1)."""
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    return calculate_shift(num_tokens, *(scheduler.config.get(name, value) for name, value in defaults.items()))


def shifted_sigmas(scheduler: Any, num_steps: int, mu: float) -> Tensor:
    """The grid (T+1,) from T equal steps of 1 to 1/T, then 0; shifted by μ, or else as the scheduler's config says."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / num_steps, num_steps), mu=mu)
    return grid_of(scheduler)


def grid_of(scheduler: Any) -> Tensor:
    """The grid (T+1,) that a scheduler was set to, float64. Raises ValueError unless it falls, from at most 1 to 0."""
    grid: Tensor = scheduler.sigmas.double().cpu()
    if not (bool((grid.diff() < 0).all()) and float(grid[0]) <= 1 and float(grid[-1]) == 0):
        raise ValueError(
            f"The model's scheduler does not go from noise to image in {len(grid) - 1} steps: its σ are "
            f"{', '.join(f'{sigma:g}' for sigma in grid.tolist()[:3])}, …; ask for more steps, or check its "
            "scheduler/scheduler_config.json."
        )
    return grid


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> np.ndarray:
    """uint8 images (N, H, W, 3) of latents (N, C, h, w), by an AutoencoderKL with a scaling and a shift factor."""
    return to_pixels(vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0])


def to_pixels(images: Tensor) -> np.ndarray:
    """uint8 images (N, H, W, 3) of an autoencoder's (N, 3, H, W) in [−1, 1]."""
    scaled = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return (scaled * 255).round().astype(np.uint8)
