"""What the export asks of a format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from engine.artifacts.export.source import ExportSource

BaseModelRelation = Literal["adapter", "finetune"]
Held = Literal["lora", "scaled lora", "weights"]


class ExportFormat(Protocol):
    """One way to write a checkpoint for other programs, and to read it back as they do."""

    @property
    def relation(self) -> BaseModelRelation:
        """What the files are to the base model, as a model card says it."""
        ...

    @property
    def holds(self) -> Held:
        """What is rounded to the export's precision: a LoRA's two matrices, B with its scale or not, or all weights."""
        ...

    @property
    def single_file(self) -> str | None:
        """The weights' file name where one file is the whole export, else None."""
        ...

    @property
    def checked_by(self) -> str:
        """How it is read back: the beginning of a sentence that goes on with "draws …"."""
        ...

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the weights into an empty folder. Raises ExportError if the model cannot be had in this format."""
        ...

    def load(self, source: ExportSource, folder: Path) -> Any:
        """The base pipeline (float32, on the CPU) with the written weights, read as the format's programs read them."""
        ...

    def weight_difference(self, source: ExportSource, folder: Path) -> float | None:
        """How far the read weights are from the checkpoint's, relative to its changes; None where diffusers reads them.

        Raises ExportError if that is more than rounding.
        """
        ...

    def how_to_use(self, source: ExportSource) -> str:
        """Markdown for the model card; Python, if any, ends with a pipeline named `pipe`."""
        ...
