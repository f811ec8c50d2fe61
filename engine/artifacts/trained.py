"""What a run has learned by one of its checkpoints: its weights as they are evaluated and exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from engine.artifacts.checkpoint import SETTINGS_NAME
from engine.artifacts.manifest import MANIFEST_NAME, CheckpointError, Manifest, find_checkpoint, verify
from engine.settings import RunSettings
from engine.settings_text import read_settings


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of one checkpoint.

    Attributes:
        path: the checkpoint's folder.
        settings: those the checkpoint was written under.
        tensors: by the names the checkpoint gives them; the running average where there is one.
        averaged: whether they are the running average.
    """

    path: Path
    settings: RunSettings
    manifest: Manifest
    tensors: dict[str, Tensor]
    averaged: bool


def locate_checkpoint(folder: Path, step: int | None) -> Path:
    """A checkpoint's folder: `folder` itself, or in a run's folder that of `step`, or else the newest that is whole.

    Raises CheckpointError, with a sentence, if there is none.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a run or of one of its checkpoints.")
    if not (folder / MANIFEST_NAME).is_file():
        return find_checkpoint(folder, step)
    if step is not None:
        raise CheckpointError(f"{folder} is one checkpoint, so there is no step to choose; give its run's folder.")
    return folder


def read_trained(checkpoint: Path) -> TrainedWeights:
    """Verify a checkpoint and read its weights. Raises CheckpointError if it is damaged, SettingsError likewise."""
    manifest = verify(checkpoint)
    settings = read_settings(checkpoint / SETTINGS_NAME)
    averaged = "ema.safetensors" in manifest.files
    trained = "adapter.safetensors" if settings.tuning.method == "lora" else "transformer.safetensors"
    name = "ema.safetensors" if averaged else trained
    if name not in manifest.files:
        raise CheckpointError(f"The checkpoint {checkpoint} holds no {name}; choose another step.")
    return TrainedWeights(checkpoint, settings, manifest, load_file(checkpoint / name), averaged)
