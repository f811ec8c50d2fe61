"""Checkpoints: written whole or not at all, verified by their manifest, and free of pickle.

Weights, averages and optimiser tensors are safetensors files; the rest is one JSON file, and the run's settings. The
order on disk is: a temporary folder beside the others, every file fsynced, ``manifest.json`` last, fsync, rename to
``step-NNNNNN``, fsync of the parent. Only when the new one verifies are older ones removed.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from engine.artifacts.manifest import (
    MANIFEST_NAME,
    REPLACED_PREFIX,
    TEMPORARY_PREFIX,
    TRASH_PREFIX,
    CheckpointError,
    FileEntry,
    Manifest,
    clean_leftovers,
    fsync_path,
    list_checkpoints,
    newest_checkpoint,
    sha256_of,
    step_folder,
    verify,
)
from engine.artifacts.tensor_files import write_tensors
from engine.settings import RunSettings

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DiskFullError",
    "Manifest",
    "clean_leftovers",
    "list_checkpoints",
    "load_checkpoint",
    "newest_checkpoint",
    "save_checkpoint",
    "verify",
]

STATE_NAME = "state.json"
SETTINGS_NAME = "settings.yaml"
SLACK_BYTES = 2**20  # headers, JSON and the file system's own blocks

Tensors = Mapping[str, Mapping[str, Tensor]]


class DiskFullError(CheckpointError):
    """The disk has no room for a checkpoint; the older ones are untouched."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory: tensors by file name and key (on the CPU), and the rest of the state."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    manifest: Manifest


def save_checkpoint(  # noqa: PLR0917 - each is a thing of its own, and all are needed
    root: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    settings: RunSettings,
    versions: Mapping[str, str],
    keep: int,
) -> Path:
    """Write the checkpoint of `step` under `root` and return its folder; keep the newest `keep`, this one included.

    `tensors` maps file names (``adapter.safetensors``) to tensors by key; `state` is anything JSON can hold.
    Checkpoints past `step` belong to a future the run has gone back on, and go with the old ones. Raises DiskFullError,
    the older checkpoints untouched, when the disk is full.
    """
    assert keep >= 1, "the checkpoint just written is always kept"
    assert all(name.endswith(".safetensors") for name in tensors), "tensor files are safetensors files"
    root.mkdir(parents=True, exist_ok=True)
    clean_leftovers(root)
    texts = {
        STATE_NAME: json.dumps(dict(state), sort_keys=True, allow_nan=False),
        SETTINGS_NAME: settings.to_yaml(),
    }
    needed = sum(tensor.nbytes for file in tensors.values() for tensor in file.values()) + SLACK_BYTES
    needed += sum(len(text) for text in texts.values())
    _check_free_disk(root, needed)
    target = step_folder(root, step)
    temporary = root / (TEMPORARY_PREFIX + target.name)
    try:
        temporary.mkdir()
        _write_files(temporary, tensors, texts)
        _write_manifest(temporary, step, settings, versions)
        _move_into_place(temporary, target)
        verify(target)
        _prune(root, step, keep)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        clean_leftovers(root)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(root, needed) from error
        raise
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint folder and read it. Raises CheckpointError, with a sentence, if it is damaged."""
    manifest = verify(path)
    try:
        tensors = {name: load_file(path / name) for name in manifest.files if name.endswith(".safetensors")}
        state = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}") from error
    return Checkpoint(path, manifest.step, tensors, state, manifest)


def _write_files(folder: Path, tensors: Tensors, texts: Mapping[str, str]) -> None:
    """Write and fsync every file but the manifest."""
    for name, file_tensors in tensors.items():
        write_tensors(folder / name, file_tensors, {"format": "pt"})
        fsync_path(folder / name)
    for name, text in texts.items():
        _write_text(folder / name, text)


def _write_manifest(folder: Path, step: int, settings: RunSettings, versions: Mapping[str, str]) -> None:
    """Describe the files of `folder`, and make them and the description durable."""
    files = {
        path.name: FileEntry(num_bytes=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(folder.iterdir())
    }
    manifest = Manifest(
        version=1,
        step=step,
        created=time.time(),
        settings_digest=settings.digest(),
        versions=dict(versions),
        files=files,
    )
    _write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    fsync_path(folder)


def _write_text(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
    fsync_path(file)


def _move_into_place(temporary: Path, target: Path) -> None:
    """Give a finished folder its name; one of the same step is set aside first, for `clean_leftovers` to judge."""
    aside = target.with_name(REPLACED_PREFIX + target.name)
    if target.exists():
        target.rename(aside)
    temporary.rename(target)
    fsync_path(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _prune(root: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`."""
    kept = [path for number, path in list_checkpoints(root) if number <= step][-keep:]
    for _, path in list_checkpoints(root):
        if path not in kept:
            # Half of a checkpoint must never bear a checkpoint's name.
            trash = path.with_name(TRASH_PREFIX + path.name)
            path.rename(trash)
            shutil.rmtree(trash)


def _check_free_disk(root: Path, needed: int) -> None:
    if shutil.disk_usage(root).free < needed:
        raise _disk_full(root, needed)


def _disk_full(root: Path, needed: int) -> DiskFullError:
    free = shutil.disk_usage(root).free
    return DiskFullError(
        f"The disk of {root} is full: a checkpoint needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free. "
        "Free some space; the run can then go on from its older checkpoints, which are untouched."
    )
