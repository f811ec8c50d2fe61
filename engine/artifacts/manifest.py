"""Which checkpoints are whole: their manifests, the newest that verifies, what a kill leaves behind (torch-free).

A checkpoint is a folder ``checkpoints/step-NNNNNN``. It is written under a temporary name and renamed last, and its
``manifest.json`` names every file with its size and SHA-256: what is not in a manifest that verifies does not exist.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20
TEMPORARY_PREFIX = ".writing-"
REPLACED_PREFIX = ".replaced-"
TRASH_PREFIX = ".trash-"

_STEP_FOLDER = re.compile(r"step-(\d{6,9})")
_FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
_CHUNK_BYTES = 2**20


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in a sentence for a person."""


class FileEntry(BaseModel):
    """Size and digest of one file of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a checkpoint holds; written after every other file of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(1, ge=1, le=1, description="Version of this layout.")
    step: int = Field(ge=0, description="Finished training iterations.")
    created: float = Field(description="Seconds since the epoch.")
    settings_digest: str = Field(description="RunSettings.digest() of the run.")
    versions: dict[str, str] = Field(description="python, torch, … at the time of writing.")
    files: dict[str, FileEntry]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together, without the manifest itself."""
        return sum(entry.num_bytes for entry in self.files.values())


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies under `root` (a run's ``checkpoints`` folder)."""
    return root / f"step-{step:06d}"


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """The finished checkpoint folders under `root` with their steps, oldest first, unverified."""
    if not root.is_dir():
        return []
    found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match is not None)


def verify(path: Path) -> Manifest:
    """Read a checkpoint's manifest and check every file it names by size and SHA-256.

    Raises CheckpointError, with a sentence that names the file at fault.
    """
    manifest = read_manifest(path)
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"The checkpoint {path} is damaged: its file {name} is missing.")
        if file.stat().st_size != entry.num_bytes:
            raise CheckpointError(f"The checkpoint {path} is damaged: {name} is not {entry.num_bytes} bytes long.")
        if sha256_of(file) != entry.sha256:
            raise CheckpointError(f"The checkpoint {path} is damaged: the contents of {name} have changed.")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """A checkpoint's manifest, its files unchecked. Raises CheckpointError if it is missing or malformed."""
    file = path / MANIFEST_NAME
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"The checkpoint {path} is damaged: its manifest is larger than any Palate writes.")
        manifest = Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} is not a checkpoint: its {MANIFEST_NAME} cannot be read.") from error
    except ValidationError as error:
        raise CheckpointError(f"The checkpoint {path} is damaged: its manifest is malformed.") from error
    # A name with a folder in it could lead out of the checkpoint.
    for name in manifest.files:
        if re.fullmatch(_FILE_NAME, name) is None:
            raise CheckpointError(f"The checkpoint {path} is damaged: its manifest names the file {name!r}.")
    return manifest


def newest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint under `root` that verifies, else the one before, and so on; None if there is none.

    It changes nothing on disk, so an export may call it beside a running engine.
    """
    for _, path in reversed(list_checkpoints(root)):
        try:
            verify(path)
        except CheckpointError:
            continue
        return path
    return None


def find_checkpoint(run: Path, step: int | None) -> Path:
    """The checkpoint of `step`, or the newest that is whole, of the run in a folder.

    Raises CheckpointError, with a sentence, if there is none.
    """
    root = run / "checkpoints"
    if step is None:
        newest = newest_checkpoint(root)
        if newest is None:
            raise CheckpointError(f"{run} has no whole checkpoint yet; let the run reach its first one.")
        return newest
    steps = [number for number, _ in list_checkpoints(root)]
    if step not in steps:
        there = f"there are checkpoints of the steps {', '.join(map(str, steps))}" if steps else "there are none yet"
        raise CheckpointError(f"{run} has no checkpoint of step {step}; {there}.")
    return step_folder(root, step)


def clean_leftovers(root: Path) -> None:
    """Remove what a killed save left under `root`. Only the engine that writes there may call it.

    A checkpoint that was set aside for one of the same step comes back if its successor never arrived.
    """
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if path.name.startswith(REPLACED_PREFIX):
            target = root / path.name.removeprefix(REPLACED_PREFIX)
            if target.exists():
                shutil.rmtree(path)
            else:
                path.rename(target)
        elif path.name.startswith((TEMPORARY_PREFIX, TRASH_PREFIX)):
            shutil.rmtree(path)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's names, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
