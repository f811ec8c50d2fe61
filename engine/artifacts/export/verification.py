"""Does an exported file draw what the run drew? Asked before anyone is given the file.

Diffusers draws, with the file read as the programs of its format read it. What it is compared with is the engine's own
model with the checkpoint's weights, rounded as the export holds them: so the tolerance is the same in every precision,
and what rounding itself does to the images shows in the comparison with the gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.artifacts.export.base import ExportFormat
from engine.artifacts.export.source import ExportError, ExportSource
from engine.artifacts.export.tuned import draw_as_in_training
from engine.models.plain_calls import set_up_plainly

MAX_DIFFERENCE = 2  # of 255: two programs round differently, a wrong scale shows more


@dataclass(frozen=True)
class Verification:
    """Largest differences of a pixel, of 255.

    Attributes:
        prompts: what was drawn.
        from_checkpoint: diffusers with the file, against the engine with the checkpoint's weights.
        from_gallery: diffusers with the file, against the tiles in the gallery; None if that step has none.
        precision: what both hold the weights in.
        quantisation: what the run held the base's weights in, by which the gallery was drawn.
    """

    prompts: tuple[str, ...]
    from_checkpoint: int
    from_gallery: int | None
    precision: str
    quantisation: str = "none"


def verify_export(source: ExportSource, kind: ExportFormat, folder: Path) -> Verification:
    """Load what was written into `folder` as a user would, draw with it, and compare.

    Raises ExportError if it differs from the checkpoint's own weights, or from the gallery where the run was drawn on
    the CPU with whole weights in float32, as the check is, and the export is not rounded.
    """
    kind.weight_difference(source, folder)
    prompts = source.check_prompts()
    drawn = _draw_plainly(source, kind, folder, prompts)
    from_checkpoint = _difference(drawn, draw_as_in_training(source, prompts, kind.holds))
    if from_checkpoint > MAX_DIFFERENCE:
        raise ExportError(
            f"The exported file was not kept: diffusers draws other images from it than the checkpoint's weights do "
            f"(up to {from_checkpoint} of 255). The checkpoint itself is whole; please report this."
        )
    tiles = _tiles(source, prompts)
    from_gallery = None if tiles is None else _difference(drawn, tiles)
    model = source.settings.model
    is_whole = {model.precision, source.precision} == {"float32"} and model.quantisation == "none"
    comparable = source.device == "CPU" and is_whole
    if from_gallery is not None and comparable and from_gallery > MAX_DIFFERENCE:
        raise ExportError(
            f"The exported file was not kept: diffusers draws other images from it than the gallery shows for step "
            f"{source.step} (up to {from_gallery} of 255). The gallery may have been changed since; please report this."
        )
    return Verification(tuple(prompts), from_checkpoint, from_gallery, source.precision, model.quantisation)


def in_words(verification: Verification, beginning: str) -> str:
    """The result as a sentence that begins with how the file was read."""
    rounded = "" if verification.precision == "float32" else f", its weights rounded to {verification.precision},"
    text = f"{beginning} draws the checkpoint's images{rounded} {_exactness(verification.from_checkpoint)}"
    if verification.from_gallery is not None:
        held = verification.quantisation
        tiles = "tiles" if held == "none" else f"tiles, whose base was held in {held},"
        text += f", and the gallery's {tiles} {_exactness(verification.from_gallery)}"
    return text


def _exactness(difference: int) -> str:
    return "to the pixel" if difference == 0 else f"to within {difference} of 255"


def _draw_plainly(source: ExportSource, kind: ExportFormat, folder: Path, prompts: Sequence[str]) -> np.ndarray:
    """uint8 images (N, H, W, 3) by the pipeline's own call, from the gallery's seeds."""
    pipeline = kind.load(source, folder)
    set_up_plainly(source.settings.model.name, pipeline, source.settings.evaluation.guidance_scale)
    if source.tiling is not None:
        source.tiling.apply(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    images = [
        pipeline(
            prompt=prompt,  # by name: a pipeline that also edits takes an image first
            generator=torch.Generator("cpu").manual_seed(source.settings.evaluation.seed + i),
            **source.call,
        ).images[0]
        for i, prompt in enumerate(prompts)
    ]
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def _tiles(source: ExportSource, prompts: Sequence[str]) -> np.ndarray | None:
    """The gallery's first tiles at the exported step, or None if they are not there."""
    drawn = source.samples_at(source.step)
    paths = [source.run / image.path for image in drawn.images[: len(prompts)]] if drawn else []
    if len(paths) != len(prompts) or not all(path.is_file() for path in paths):
        return None
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def _difference(first: np.ndarray, second: np.ndarray) -> int:
    """The largest difference of a pixel; 255 if the shapes differ."""
    if first.shape != second.shape:
        return 255
    return int(np.abs(first.astype(np.int16) - second.astype(np.int16)).max())
