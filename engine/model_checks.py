"""What can be told of a run's model before it is loaded: from its files' headers and the settings (free of torch)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.catalogue import MODEL_INFO
from engine.family_defaults import takes_no_guidance
from engine.hub import cached_folder
from engine.model_size import ModelSize, read_size
from engine.pipeline_folders import read_index, read_json
from engine.settings import ModelSettings, RunSettings
from engine.starting_files import check_start

_EULER = "FlowMatchEulerDiscreteScheduler"
MEAN_VELOCITY = (
    "This HunyuanImage predicts the mean velocity of a whole step (use_meanflow), as the published distilled one does, "
    "and no stochastic step can be made of that; choose a folder of the base model."
)


def require_source(model: ModelSettings) -> None:
    """Raise ValueError if the settings name no weights of a family that needs some."""
    if model.folder is None and model.hub_id is None and MODEL_INFO[model.name].needs_folder:
        raise ValueError(
            f"The model {model.name} comes without weights; set model.folder to a folder that holds its diffusers "
            "pipeline (with model_index.json), or model.hub_id to its name on the Hugging Face hub."
        )


def check_scheduler(folder: Path) -> None:
    """Raise ValueError, saying what to do, unless the scheduler takes Euler's steps of flow matching, and can here."""
    config, index = read_json(folder / "scheduler" / "scheduler_config.json"), read_index(folder)
    kind = index["scheduler"][1]
    if kind != _EULER and not (index["_class_name"] == "SanaPipeline" and _solves_flow(kind, config)):
        raise ValueError(
            f"The scheduler of {folder} is a {kind}, set to something else than flow matching by Euler's steps; save "
            f"the pipeline with a {_EULER}."
        )
    for name in ("invert_sigmas", "stochastic_sampling"):
        if config.get(name):
            raise ValueError(
                f"The scheduler of {folder} has {name}, which leads no plain way from noise to an image; set it to "
                "false in its scheduler/scheduler_config.json."
            )
    if config.get("use_beta_sigmas") and find_spec("scipy") is None:
        raise ValueError(
            f"The scheduler of {folder} spaces its steps by a beta distribution (use_beta_sigmas), which needs scipy; "
            'install it with .venv/bin/pip install -c constraints.txt -e ".[beta]".'
        )


def _solves_flow(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler is the solver of published SANA folders, whose first order is Euler's steps."""
    bends = ("use_karras_sigmas", "use_lu_lambdas", "use_exponential_sigmas", "use_beta_sigmas")
    return (
        kind == "DPMSolverMultistepScheduler"
        and bool(config.get("use_flow_sigmas"))
        and config.get("prediction_type") == "flow_prediction"
        and config.get("algorithm_type", "dpmsolver++") == "dpmsolver++"
        and not any(config.get(bend) for bend in bends)
    )


def folder_here(model: ModelSettings) -> Path | None:
    """The pipeline folder a run would load, if it is on this machine: no hub is asked. None for Palate's own weights.

    Whether it may be read is for the caller to know.
    """
    if model.hub_id is not None:
        return cached_folder(model.hub_id, model.revision)
    return Path(model.folder) if model.folder else None


def check_model(settings: RunSettings) -> None:
    """Raise ValueError, with a sentence, if a run's model could not be loaded, as far as files on this machine tell.

    Everything the settings name is read, so call it only with what may be read.
    """
    model = settings.model
    require_source(model)
    folder = folder_here(model)
    if folder is not None:
        _check_resolution(_size(folder, settings), settings)
        check_scheduler(folder)
        _check_velocity(folder)
        _check_guidance(folder, settings)
    if model.start_from is not None:
        check_start(Path(model.start_from), folder)


def _size(folder: Path, settings: RunSettings) -> ModelSize:
    """The sizes of a pipeline's parts, so that every header is read once. Raises ValueError."""
    try:
        return read_size(folder, settings)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is not what diffusers writes: a part or a configuration lacks {error}; download or copy it "
            "again."
        ) from error


def _check_resolution(size: ModelSize, settings: RunSettings) -> None:
    resolution, pixels = settings.model.resolution, size.pixels_a_token
    if resolution is not None and resolution % pixels:
        raise ValueError(
            f"model.resolution is {resolution}, but this model draws multiples of {pixels} pixels a side; choose one "
            "of those, or leave it empty."
        )


def _check_velocity(folder: Path) -> None:
    if read_json(folder / "transformer" / "config.json").get("use_meanflow"):
        raise ValueError(MEAN_VELOCITY)


def _check_guidance(folder: Path, settings: RunSettings) -> None:
    scales = (settings.sampling.guidance_scale, settings.evaluation.guidance_scale)
    if max(scales) > 1 and takes_no_guidance(folder, settings.model.name):
        raise ValueError(
            f"The guidance scale is {max(scales):g}, but {folder.name} is distilled and takes none; set "
            "sampling.guidance_scale and evaluation.guidance_scale to 1."
        )
