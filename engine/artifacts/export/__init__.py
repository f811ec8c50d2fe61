"""Exports: a checkpoint as files that other programs load, checked by loading them there.

To add a format: a file here with a class that fits `ExportFormat`, a line in `EXPORT_FORMATS`, and its facts in
`EXPORT_INFO` (engine/catalogue/exports.py).
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.artifacts.export.base import ExportFormat
from engine.artifacts.export.comfyui import ComfyUi
from engine.artifacts.export.diffusers_lora import DiffusersLora
from engine.artifacts.export.kohya import Kohya
from engine.artifacts.export.merged import Merged
from engine.artifacts.export.model_card import model_card
from engine.artifacts.export.pipeline_folder import PipelineFolder
from engine.artifacts.export.source import ExportError, ExportSource, read_source
from engine.artifacts.export.started import with_started_base
from engine.artifacts.export.verification import Verification, in_words, verify_export
from engine.catalogue import ExportPrecision, why_not
from engine.quiet import quiet_libraries

__all__ = ["EXPORT_FORMATS", "ExportError", "ExportReport", "export_run"]

EXPORT_FORMATS: dict[str, dict[Literal["lora", "full"], ExportFormat]] = {
    "diffusers": {"lora": DiffusersLora(), "full": Merged()},
    "comfyui": {"lora": ComfyUi()},
    "kohya": {"lora": Kohya()},
    "merged": {"lora": Merged(), "full": Merged()},
    "pipeline": {"lora": PipelineFolder(), "full": PipelineFolder()},
}
CARD_NAME = "README.md"
NUM_CARD_IMAGES = 4


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file or folder.
        step: finished iterations at the exported checkpoint.
        num_bytes: size of it all.
        verified: it was read back as its programs read it, and the same images drawn with it.
        max_difference: largest difference of a pixel in that check, of 255.
        text: the same in a sentence or two for a person.
    """

    path: Path
    step: int
    num_bytes: int
    verified: bool
    max_difference: float
    text: str


def export_run(
    run_dir: Path, format: str, out: Path, step: int | None = None, precision: ExportPrecision = "float32"
) -> ExportReport:
    """Write a run's checkpoint (the newest, or that of `step`) to `out`, checked by reading it back and drawing.

    `out` is a ``.safetensors`` file (its card is put beside it), a ``.zip``, or else a new folder; more than one file
    becomes a ``.zip`` where a ``.safetensors`` was asked for. Raises ValueError with a sentence (ExportError,
    CheckpointError, SettingsError); nothing is then left at `out`.
    """
    if format not in EXPORT_FORMATS:
        raise ExportError(f"There is no export format {format!r}; choose one of: {', '.join(EXPORT_FORMATS)}.")
    source = read_source(run_dir, step, precision)
    method = source.settings.tuning.method
    refusal = why_not(format, method, source.settings.model.name)
    if refusal is not None:
        raise ExportError(refusal)
    kind = EXPORT_FORMATS[format][method]
    out = _destination(kind, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary, quiet_libraries():
        source = with_started_base(source, Path(temporary) / "base")
        folder = Path(temporary) / "files"
        folder.mkdir()
        kind.write(source, folder)
        verification = verify_export(source, kind, folder)
        alone = out.suffix == ".safetensors"
        images = [] if alone else _copy_images(source, folder)
        licence = None if alone else source.licence.file
        if licence is not None:
            shutil.copyfile(licence, folder / licence.name)
        card = model_card(source, kind, verification, images, licence is not None)
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        num_bytes = _place(kind, folder, out)
    text = _sentence(source, kind, out, num_bytes, verification)
    return ExportReport(out, source.step, num_bytes, True, verification.from_checkpoint, text)


def _destination(kind: ExportFormat, out: Path) -> Path:
    """Where the export goes, asked for as `out`. Raises ExportError if something is in the way."""
    if out.suffix == ".safetensors" and kind.single_file is None:
        out = out.with_suffix(".zip")
    is_folder = out.suffix not in (".safetensors", ".zip")
    if out.is_dir() and (not is_folder or any(out.iterdir())):
        raise ExportError(f"{out} is a folder that is already there; choose another name, or remove it first.")
    if is_folder and out.is_file():
        raise ExportError(f"{out} is a file that is already there; end the name in .safetensors or .zip, or remove it.")
    return out


def _copy_images(source: ExportSource, folder: Path) -> list[str]:
    """Copy the exported step's first tiles for the card; their paths relative to it."""
    drawn = source.samples_at(source.step)
    copied: list[str] = []
    for image in drawn.images[:NUM_CARD_IMAGES] if drawn else ():
        if not (source.run / image.path).is_file():
            break
        (folder / "images").mkdir(exist_ok=True)
        copied.append(f"images/{image.index:03d}.png")
        shutil.copyfile(source.run / image.path, folder / copied[-1])
    return copied


def _place(kind: ExportFormat, folder: Path, out: Path) -> int:
    """Move the finished files to `out` in one step each; returns their bytes."""
    if out.suffix == ".safetensors":
        assert kind.single_file is not None, "checked before writing"
        (folder / CARD_NAME).replace(out.with_suffix(".md"))
        (folder / kind.single_file).replace(out)
        return out.stat().st_size
    if out.suffix == ".zip":
        archive = folder.with_suffix(".zip")
        _zip(folder, archive)
        archive.replace(out)
        return out.stat().st_size
    folder.replace(out)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _zip(folder: Path, archive: Path) -> None:
    """Zip a folder's files, uncompressed: weights do not shrink."""
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            zipped.write(file, file.relative_to(folder))


def _sentence(source: ExportSource, kind: ExportFormat, out: Path, num_bytes: int, verification: Verification) -> str:
    checked = in_words(verification, kind.checked_by)
    return f"Step {source.step} is in {out.name} ({num_bytes / 1e6:.1f} MB). Checked: {checked}."
