"""What lies in the model folders of an installation: pipelines to tune, and LoRAs and transformers to start from.

Folders are looked through to a small depth, links only as far as they lead to another listed place; files are told by
their headers. What cannot be read is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from engine.pipeline_folders import INDEX_NAME, check_whole, families_of, read_index
from engine.settings import ModelName
from engine.starting_files import StartKind, kind_of

# A hub's cache has its pipelines three folders deep.
_MAX_DEPTH = 4
_MAX_FOLDERS = 3000
_TRANSFORMER = ("config.json", "diffusion_pytorch_model")


@dataclass(frozen=True)
class FoundPipeline:
    """A folder with a model_index.json.

    Attributes:
        path: whole, without links.
        name: the path as seen from its root.
        families: those that it may be of; none, where Palate does not tune its kind.
        num_bytes: of its weights.
        problem: why it cannot be used, in a sentence; "" if it can.
    """

    path: Path
    name: str
    families: tuple[ModelName, ...]
    num_bytes: int
    problem: str = ""


@dataclass(frozen=True)
class FoundStart:
    """A file or folder that a model may start from; `families` is known of pipeline folders alone."""

    path: Path
    name: str
    kind: StartKind
    num_bytes: int
    families: tuple[ModelName, ...] = ()


Found = TypeVar("Found", FoundPipeline, FoundStart)


@dataclass(frozen=True)
class ModelLibrary:
    """All that was found, by name."""

    pipelines: tuple[FoundPipeline, ...]
    starts: tuple[FoundStart, ...]

    def of_family(self, name: ModelName) -> list[FoundPipeline]:
        """The pipelines of a family."""
        return [pipeline for pipeline in self.pipelines if name in pipeline.families]

    def starts_for(self, name: ModelName, folder: str | None) -> list[FoundStart]:
        """What a model of a family, from a folder, might start from: all but itself and other families' pipelines."""
        return [
            start for start in self.starts
            if str(start.path) != folder and (not start.families or name in start.families)
        ]  # fmt: skip


def find_models(roots: Sequence[Path]) -> ModelLibrary:
    """Look through the roots. A root that is not there holds nothing."""
    pipelines: list[FoundPipeline] = []
    starts: list[FoundStart] = []
    for root, folder in _folders(roots):
        if (folder / INDEX_NAME).is_file():
            found = _pipeline(root, folder)
            pipelines.append(found)
            if not found.problem:
                starts.append(
                    FoundStart(folder, found.name, "transformer", _num_bytes(folder / "transformer"), found.families)
                )
        else:
            starts += _starts_in(root, folder)
    return ModelLibrary(_by_name(pipelines), _by_name(starts))


def _folders(roots: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Every folder under the roots with its root, each once; those of a pipeline or a transformer are not entered."""
    resolved = [root.resolve() for root in roots]
    waiting = [(root, root, 0) for root in resolved if root.is_dir()]
    seen: set[Path] = set()
    while waiting and len(seen) < _MAX_FOLDERS:
        root, folder, depth = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        yield root, folder
        if depth == _MAX_DEPTH or (folder / INDEX_NAME).is_file() or _is_transformer(folder):
            continue
        with suppress(OSError):
            inside = (Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith("."))
            for place in (path.resolve() for path in inside if path.is_dir()):
                home = next((other for other in resolved if place.is_relative_to(other)), None)
                if home is not None:
                    waiting.append((home, place, depth + 1))


def _pipeline(root: Path, folder: Path) -> FoundPipeline:
    families: tuple[ModelName, ...] = ()
    problem = ""
    try:
        families = families_of(read_index(folder))
        check_whole(folder)
    except (ValueError, OSError) as error:
        problem = str(error)
    return FoundPipeline(folder, _name(root, folder), families, _num_bytes(folder), problem)


def _starts_in(root: Path, folder: Path) -> list[FoundStart]:
    """A transformer folder itself, or the safetensors files that lie in another folder."""
    if _is_transformer(folder):
        return [FoundStart(folder, _name(root, folder), "transformer", _num_bytes(folder))]
    found = []
    with suppress(OSError):
        for path in folder.glob("*.safetensors"):
            if path.resolve().is_relative_to(root):
                with suppress(ValueError, OSError):
                    status = path.stat()
                    kind = _kind(path, status.st_mtime_ns, status.st_size)
                    found.append(FoundStart(path.resolve(), _name(root, path), kind, status.st_size))
    return found


@lru_cache(maxsize=1024)
def _kind(path: Path, modified: int, num_bytes: int) -> StartKind:
    """`kind_of`, once for each state of a file: a header may be megabytes."""
    return kind_of(path)


def _is_transformer(folder: Path) -> bool:
    config, weights = _TRANSFORMER
    return (folder / config).is_file() and any(folder.glob(f"{weights}*.safetensors"))


def _num_bytes(folder: Path) -> int:
    """Of the safetensors in a folder and its parts."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]
    with suppress(OSError):
        return sum(path.stat().st_size for path in files)
    return 0


def _name(root: Path, path: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return path.name if relative == "." else relative


def _by_name(found: list[Found]) -> tuple[Found, ...]:
    return tuple(sorted(found, key=lambda each: (each.name.lower(), each.path)))
