"""Where a model's weights come from: a folder, the hub, or Palate itself; and how that is told to a reader."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.builtin import WEIGHTS
from engine.hub import commit_of, hub_folder
from engine.model_checks import require_source
from engine.pipeline_folders import check_pipeline_folder
from engine.settings import ModelName, ModelSettings

OWN_WEIGHTS: dict[ModelName, Path] = {"builtin": WEIGHTS}


def model_folder(model: ModelSettings) -> Path:
    """The pipeline folder the settings name, downloaded if it is the hub's and not here yet.

    Raises ValueError, saying what to change, if it is no whole pipeline folder of that family or cannot be had.
    """
    require_source(model)
    if model.hub_id is not None:
        folder = hub_folder(model.hub_id, model.revision)
    else:
        folder = Path(model.folder) if model.folder else OWN_WEIGHTS[model.name]
    check_pipeline_folder(folder, model.name)
    return folder


def pinned(model: ModelSettings) -> ModelSettings:
    """The same model with the commit that its revision is at now. Raises ValueError if the hub does not say."""
    if model.hub_id is None:
        return model
    return model.model_copy(update={"revision": commit_of(model.hub_id, model.revision)})


def base_in_words(model: ModelSettings) -> str:
    """What a run is relative to, without folders of this machine: name, commit, and what it started from."""
    if model.hub_id is not None:
        text = f"{model.hub_id} at {model.revision or 'main'}"
    else:
        text = Path(model.folder).name if model.folder else f"palate-{model.name}"
    if model.start_from is None:
        return text
    start = Path(model.start_from)
    return f"{text}, started from {start.name} (sha256 {sha256_of(start)})"


def sha256_of(path: Path) -> str:
    """SHA-256, in hex, of a file; of a folder, that of its safetensors files in order, names and all."""
    if path.is_file():
        return _digest(path).hex()
    names = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        names.update(file.name.encode() + b"\0" + _digest(file))
    return names.hexdigest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
