"""What a run will ask for, before it is launched: work, memory and time, in sentences. No Streamlit.

A `folder` holds the run's model, where that is another than the built-in one. It is read here, so it must be one that
may be, unlike whatever a form's text names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app import words
from engine import memory_advice, time_estimate
from engine.builtin import WEIGHTS
from engine.catalogue.gpus import GPUS, GpuInfo, find_gpu
from engine.memory_advice import GIB, Change
from engine.memory_estimate import estimate_memory
from engine.model_size import ModelSize, read_size
from engine.settings import RunSettings
from engine.time_estimate import TOO_SMALL, Speed, cpu_speed, estimate_time, gpu_speed, is_too_small, milliseconds
from engine.work import mean_work, num_evaluations

# Told of where nothing is known of the GPU that a run will have: one of a data centre, and one of a desk.
_COMMON = ("H100", "RTX 4090")


def work(settings: RunSettings, folder: Path | None = None) -> str:
    """How much work the settings ask for, in a sentence."""
    size = size_of(settings, folder)
    images = settings.grpo.prompts_per_iteration * settings.grpo.group_size
    on_gpu = settings.compute.device == "cuda"
    scoring = images * sum(milliseconds(reward.name, on_gpu) for reward in settings.rewards) / 1000
    evaluations = num_evaluations(settings)
    held_out = evaluations * settings.evaluation.num_prompts
    counted = mean_work(settings, size is not None and size.takes_guidance)
    return (
        f"{images:,} images an iteration ({settings.grpo.prompts_per_iteration} prompts × {settings.grpo.group_size}), "
        f"{images * settings.iterations:,} in all; {settings.grpo.updates_per_iteration} updates an iteration; "
        f"{counted.rollout + counted.reference:,.0f} transformer forwards and {counted.trained_steps:,.0f} trained "
        "steps an iteration; "
        f"scoring about {scoring:.1f} s an iteration; {held_out:,} held-out images over {evaluations:,} samplings."
    )


def memory(settings: RunSettings, folder: Path | None = None, devices: Sequence[str] = ()) -> str:
    """How much GPU memory the settings ask for, and what to change where the first known device has less.

    "" of a model whose size is not known.
    """
    size, gpus = size_of(settings, folder), _known(devices)
    available = gpus[0].memory * GIB if gpus else None
    return "" if size is None else memory_advice.in_words(size, settings, available)


def less_memory(
    settings: RunSettings, error: str, folder: Path | None = None, devices: Sequence[str] = ()
) -> tuple[Change, ...]:
    """What to change after a run failed with this error, where a memory was full; () where nothing is known to help.

    `devices` are the names of those that may take the run: beside a GPU, fewer images spare the machine's own nothing.
    """
    full, wanted = words.full_memory(error), settings.compute.device
    if full is None:
        return ()
    if full == "machine":
        on_gpu = wanted == "cuda" or (wanted == "auto" and any(device.startswith("cuda") for device in devices))
        return () if on_gpu else memory_advice.fewer_at_once(settings)
    size = size_of(settings, folder)
    return () if size is None else memory_advice.lighten(size, settings).changes


def all_of(settings: RunSettings, folder: Path | None, devices: Sequence[str]) -> str:
    """Work, memory and time, a line each, as `palate estimate` prints them."""
    told = [work(settings, folder), *times(settings, folder, devices)]
    if settings.compute.device != "cpu":
        told.insert(1, memory(settings, folder, devices))
    if size_of(settings, folder) is None:
        told = [told[0], "How much memory and time it takes is not known before the model is on this machine."]
    return "\n".join(told)


def times(
    settings: RunSettings, folder: Path | None = None, devices: Sequence[str] = (), measured: Speed | None = None
) -> list[str]:
    """How long the run takes: as measured, or on the devices there are, or on common ones. [] of an unknown model.

    `devices` are the names of those that may take the run, as workers give them; `measured` is what earlier runs of the
    model reached.
    """
    size = size_of(settings, folder)
    if size is None:
        return []
    if measured is not None:
        return [_time(size, settings, measured)]
    wanted = settings.compute.device
    gpus = [] if wanted == "cpu" else _known(devices)
    is_small = settings.model.name == "builtin" and not any(device.startswith("cuda") for device in devices)
    if wanted == "cpu" or (wanted == "auto" and is_small and not gpus):
        return [_time(size, settings, cpu_speed(settings))]
    if is_too_small(size):
        return [TOO_SMALL]
    peak = estimate_memory(size, settings).peak
    return [
        _time(size, settings, gpu_speed(gpu, settings)) if peak < gpu.memory * GIB
        else f"An NVIDIA {gpu.name} has {gpu.memory} GiB of memory, too little for these settings."
        for gpu in gpus or [gpu for gpu in GPUS if gpu.name in _COMMON]
    ]  # fmt: skip


def _time(size: ModelSize, settings: RunSettings, speed: Speed) -> str:
    return time_estimate.in_words(estimate_time(size, settings, speed), speed)


def size_of(settings: RunSettings, folder: Path | None) -> ModelSize | None:
    """The size of the run's model; None if it is not the built-in one, and no folder of it is given."""
    model = settings.model
    if folder is None and (model.name != "builtin" or model.folder or model.hub_id):
        return None
    return read_size(folder or WEIGHTS, settings)


def _known(devices: Sequence[str]) -> list[GpuInfo]:
    """The GPUs among the devices whose speed is known, each once."""
    return list(dict.fromkeys(gpu for device in devices if (gpu := find_gpu(device)) is not None))
