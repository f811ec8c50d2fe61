"""What the export asks of a format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from engine.artifacts.export.source import ExportSource

BaseModelRelation = Literal["adapter", "finetune"]


class ExportFormat(Protocol):
    """One way to write a checkpoint for other programs, and to read it back as they do."""

    @property
    def relation(self) -> BaseModelRelation:
        """What the files are to the base model, as a model card says it."""
        ...

    @property
    def single_file(self) -> str | None:
        """The weights' file name where one file is the whole export, else None."""
        ...

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the weights into an empty folder."""
        ...

    def load(self, base: Path, folder: Path) -> Any:
        """The base pipeline (float32, on the CPU) with the written weights, by plain diffusers alone."""
        ...

    def how_to_load(self, source: ExportSource) -> str:
        """Python for the model card: from imports to a pipeline named `pipe`, on the base pipeline's folder."""
        ...
