"""Words for people: durations, sizes, gains, states, and what a failure means. Pure functions, no Streamlit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.catalogue import MODEL_INFO, REWARD_INFO
from engine.durations import duration
from engine.memory_advice import Change
from engine.settings import ModelSettings

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def time_left(seconds: float | None) -> str:
    """The rest of a run, "2 min left"; an empty text where nothing is known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    return "almost done" if seconds < 1 else f"{duration(seconds)} left"


def ago(when: float | None, now: float | None = None) -> str:
    """How long ago `when` (seconds since the epoch) was: "just now", "5 min ago"; empty if it has not been."""
    if when is None:
        return ""
    passed = (time.time() if now is None else now) - when
    return "just now" if passed < 10 else f"{duration(passed)} ago"


def size(num_bytes: int) -> str:
    """A file size: "840 bytes", "3.2 MB"."""
    value, unit = float(num_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{num_bytes} bytes" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 prompt", "2,000 prompts"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def model_title(model: ModelSettings) -> str:
    """The model's title in the catalogue, with its folder's or its hub's name, and what it was started from."""
    named = model.hub_id or (Path(model.folder).name if model.folder else None)
    title = MODEL_INFO[model.name].title
    text = f"{title}, {named}" if named else title
    return f"{text}, started from {Path(model.start_from).name}" if model.start_from else text


def reward_title(name: str) -> str:
    """The reward's title in the catalogue, or its name made readable."""
    for known, info in REWARD_INFO.items():
        if known == name:
            return info.title
    return name.replace("_", " ").capitalize()


def digits_for(name: str) -> int:
    """Digits after the point that tell this reward's scores apart: two for small ranges, one for kilobytes."""
    for known, info in REWARD_INFO.items():
        if known == name:
            return 2 if info.range[1] - info.range[0] <= 20 else 1
    return 2


def score(name: str, value: float) -> str:
    """A score with the digits that suit its reward."""
    return f"{value:.{digits_for(name)}f}".replace("-", "−")


def gain(name: str, before: float | None, after: float | None) -> str:
    """A change: "0.89 → 1.34 (+51 %)"; one figure where there is only one. Per cent only where it means something."""
    if before is None or after is None:
        known = after if before is None else before
        return "" if known is None else score(name, known)
    text = f"{score(name, before)} → {score(name, after)}"
    if abs(before) < 0.05:
        return text
    share = (after - before) / abs(before)
    return f"{text} ({'+' if share >= 0 else '−'}{abs(share) * 100:.0f} %)"


@dataclass(frozen=True)
class Look:
    """How a state is shown: a word, a Material icon, a colour of st.badge."""

    word: str
    icon: str
    colour: str


STATES: dict[str, Look] = {
    "queued": Look("Waiting", ":material/hourglass_empty:", "gray"),
    "running": Look("Training", ":material/play_circle:", "primary"),
    "stopping": Look("Stopping", ":material/pause_circle:", "orange"),
    "done": Look("Finished", ":material/check_circle:", "green"),
    "failed": Look("Failed", ":material/error:", "red"),
    "cancelled": Look("Cancelled", ":material/cancel:", "orange"),
}


def look(state: str, cancel_requested: bool = False) -> Look:
    """The look of a job's state; a running job that was asked to stop is "Stopping"."""
    return STATES["stopping" if state == "running" and cancel_requested else state]


_CAUSES: tuple[tuple[str, str], ...] = (
    ("no space left", "The disk is full. Free some space (older runs take the most), then retry: it goes on from the "
     "newest checkpoint."),
    ("out of memory", "The machine ran out of memory. Lower compute.micro_batch or grpo.group_size under Advanced in a "
     "new run, set tuning.gradient_checkpointing and, on a GPU, compute.offload to true, or close other programs and "
     "retry."),
    ("cannot allocate memory", "The machine ran out of memory. Lower compute.micro_batch in a new run, or retry."),
    ("exit code -9", "The operating system ended the training process, most often because memory ran out. Lower "
     "compute.micro_batch in a new run, or close other programs and retry."),
    ("nan", "The numbers ran away: the loss or a weight became infinite. Start a new run with a lower learning rate."),
)


# What of an error says that a GPU's memory ran out, and what that this machine's own did.
_GPU_FULL = ("memory of the device", "cuda out of memory", "hip out of memory")
_MACHINE_FULL = ("out of memory", "cannot allocate memory", "exit code -9")


def full_memory(error: str) -> Literal["gpu", "machine"] | None:
    """Which memory ran out; None if the error is another."""
    words = error.lower()
    if any(sign in words for sign in _GPU_FULL):
        return "gpu"
    return "machine" if any(sign in words for sign in _MACHINE_FULL) else None


_CHANGES: dict[str, str] = {
    "compute.micro_batch": "fewer images at a time",
    "compute.embedding_cache": "every prompt encoded once, before training",
    "compute.offload": "text encoders and autoencoder on the GPU only while they work",
    "model.precision": "arithmetic and frozen weights in half precision",
    "model.vae_tile": "images decoded in tiles",
    "model.quantisation": "frozen weights in fewer bits",
    "optimiser.name": "the optimiser's moments in 8 bits",
    "tuning.gradient_checkpointing": "activations computed again instead of kept",
    "tuning.method": "a LoRA instead of all weights",
}


def changes(made: Iterable[Change]) -> str:
    """Changes of settings, in words and as settings: "images decoded in tiles (`model.vae_tile: 512`), …"."""
    return ", ".join(
        f"{_CHANGES[f'{change.section}.{change.name}']} (`{change.section}.{change.name}: "
        f"{str(change.value).lower()}`)"
        for change in made
    )


def cause(error: str) -> str:
    """What went wrong in plain words and what to do: a known cause, or the error's own sentence."""
    words = error.lower()
    for sign, sentence in _CAUSES:
        if sign in words.split() or (" " in sign and sign in words):
            return sentence
    first = error.strip().splitlines()
    return first[-1] if first else "The run ended without saying why; the log below may help. Retry goes on from the " \
        "newest checkpoint."
