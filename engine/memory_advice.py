"""What a run takes of a GPU's memory, in words, and which settings to change where it will not fit (free of torch)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.memory_estimate import estimate_memory
from engine.model_size import ModelSize
from engine.settings import RunSettings
from engine.settings.compute import CPU_MICRO_BATCH

GIB = 2**30
# Of a GPU's memory: the rest is the CUDA context's, and lost to fragments.
_USABLE_SHARE = 0.85
_STEP = 0.75


@dataclass(frozen=True)
class Change:
    """One setting, and the value that it should have."""

    section: str
    name: str
    value: str | bool | int

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.section}.{self.name} to {value}"


# The least loss first: what costs nothing, some time, some precision, and then what is trained.
CHANGES = (
    Change("compute", "embedding_cache", True),
    Change("model", "precision", "bfloat16"),
    Change("compute", "offload", True),
    Change("tuning", "gradient_checkpointing", True),
    Change("model", "vae_tile", 512),
    Change("optimiser", "name", "adamw_8bit"),
    Change("model", "quantisation", "int8"),
    Change("model", "quantisation", "nf4"),
    Change("tuning", "method", "lora"),
    Change("model", "quantisation", "int8"),
    Change("model", "quantisation", "nf4"),
)


@dataclass(frozen=True)
class Remedy:
    """Changes that lower the memory of a run, and whether it then fits.

    Attributes:
        changes: as few as are needed, of those that lose least.
        peak: bytes with them.
    """

    changes: tuple[Change, ...]
    peak: int
    fits: bool


def find_remedy(size: ModelSize, settings: RunSettings, available: int) -> Remedy:
    """What to change for a GPU with so many bytes; all that helps, where even that is too little."""
    usable = _USABLE_SHARE * available
    changes: list[Change] = []
    peak = _peak(size, settings, ())
    for change in CHANGES:
        if peak <= usable:
            break
        # One value a setting: nf4 takes int8's place.
        others = [kept for kept in changes if (kept.section, kept.name) != (change.section, change.name)]
        lower = _peak(size, settings, [*others, change])
        if lower < peak:
            changes, peak = [*others, change], lower
    for change in tuple(changes) if peak <= usable else ():
        without = [kept for kept in changes if kept is not change]
        if _peak(size, settings, without) <= usable:
            changes, peak = without, _peak(size, settings, without)
    return Remedy(tuple(changes), int(peak), peak <= usable)


def lighten(size: ModelSize, settings: RunSettings) -> Remedy:
    """What to change after a run has filled a memory of unknown size, for three quarters of its estimate or less."""
    return find_remedy(size, settings, int(_STEP * _peak(size, settings, ()) / _USABLE_SHARE))


def fewer_at_once(settings: RunSettings) -> tuple[Change, ...]:
    """What to change after a run has filled a CPU's own memory: a quarter of the images at a time.

    Where it is one already, activations are computed again; () where they are.
    """
    batch = settings.compute.micro_batch
    at_once = CPU_MICRO_BATCH if batch == "auto" else batch
    if at_once > 1:
        return (Change("compute", "micro_batch", max(1, at_once // 4)),)
    return () if settings.tuning.gradient_checkpointing else (Change("tuning", "gradient_checkpointing", True),)


def changed(settings: RunSettings, changes: Iterable[Change]) -> RunSettings:
    """The settings with these changes. Raises ValueError where they do not go together."""
    data = settings.model_dump()
    for change in changes:
        data[change.section][change.name] = change.value
    return RunSettings.model_validate(data)


def _peak(size: ModelSize, settings: RunSettings, changes: Sequence[Change]) -> float:
    """Bytes with these changes; without end where they do not go together."""
    try:
        return estimate_memory(size, changed(settings, changes)).peak
    except ValueError:
        return math.inf


def in_words(size: ModelSize, settings: RunSettings, available: int | None = None) -> str:
    """The estimate in a sentence or two: what a run takes, and what to change where a GPU has fewer bytes."""
    estimate = estimate_memory(size, settings)
    for_training = estimate.adapter + estimate.gradients + estimate.optimiser + estimate.copies
    text = (
        f"About {_size(estimate.peak)} of GPU memory with one image at a time: {_size(estimate.start)} while prompts "
        f"are encoded, {_size(estimate.training)} in training ({_size(estimate.weights)} weights, "
        f"{_size(for_training)} for what is trained, {_size(estimate.activations)} activations), "
        f"{_size(estimate.decoding)} while an image is decoded; rewards that are models come on top."
    )
    if available is None or estimate.peak <= _USABLE_SHARE * available:
        return text
    return f"{text} That will hardly fit this GPU's {_size(available)}: {_advice(size, settings, available)}."


def _advice(size: ModelSize, settings: RunSettings, available: int) -> str:
    remedy = find_remedy(size, settings, available)
    named = " and ".join(filter(None, (", ".join(map(str, remedy.changes[:-1])), *map(str, remedy.changes[-1:]))))
    if remedy.fits:
        text = f"set {named}, for about {_size(remedy.peak)}"
        gives_up = any(change.name == "method" for change in remedy.changes)
        return f"{text}; or share the weights among several GPUs with compute.sharding" if gives_up else text
    beyond = "lower model.resolution, or use a GPU with more memory"
    return f"set {named}, and as that is not enough ({_size(remedy.peak)}), {beyond}" if named else beyond


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.0f} MiB"
