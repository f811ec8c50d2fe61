"""Paths under the data home. Rows hold them relative to it; every one is resolved and checked before it is opened."""

from __future__ import annotations

import os
from pathlib import Path

from store.config import Config


class OutsideError(ValueError):
    """A path that leads out of the folder it must stay in."""


def resolve(config: Config, relative: str) -> Path:
    """The absolute path of a row's path. Raises OutsideError if it leads out of the data home, by .. or by a link."""
    return _inside(config.home, relative)


def relative_to_home(config: Config, path: Path) -> str:
    """A path as rows hold it. Raises OutsideError if it is not under the data home."""
    resolved = path.resolve()
    if not resolved.is_relative_to(config.home):
        raise OutsideError(f"{path} is not in the data folder {config.home}.")
    return resolved.relative_to(config.home).as_posix()


def run_folder(config: Config, run_id: str) -> Path:
    """Everything of a run, over all its epochs."""
    return _inside(config.home / "runs", run_id)


def epoch_folder(config: Config, run_id: str, epoch: int) -> Path:
    """What one claim of the run's job wrote: an engine's folder. No two claims share one."""
    return run_folder(config, run_id) / str(int(epoch))


def row_path(run_id: str, epoch: int, path: str) -> str:
    """An engine's path (relative to its epoch's folder) as a row holds it. Raises OutsideError for .. and absolutes."""
    if Path(path).is_absolute() or ".." in Path(path).parts or not path:
        raise OutsideError(f"The engine named the file {path!r}, which is not in its folder.")
    return f"runs/{run_id}/{epoch}/{Path(path).as_posix()}"


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old or the new one, never a part."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _inside(root: Path, relative: str) -> Path:
    if "\x00" in relative:
        raise OutsideError("A path cannot hold a NUL.")
    path = (root / relative).resolve()
    if path == root.resolve() or not path.is_relative_to(root.resolve()):
        raise OutsideError(f"{relative!r} leads out of the data folder.")
    return path
