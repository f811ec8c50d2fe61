"""Drawing with a checkpoint or its base model, as the model's plain pipeline draws; `palate generate`.

The averaged weights draw where the run has them, as they do in its gallery and its exports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.artifacts.trained import TrainedWeights, locate_checkpoint, read_trained
from engine.batching import fixed_size, fixed_sizes
from engine.evaluation import Sample, draw, save_images
from engine.models import TextToImage, load_model, model_folder
from engine.models.placement import place, place_transformer
from engine.models.velocity import prompt_velocity
from engine.quiet import quiet_libraries
from engine.reports import GENERATION_NAME, DrawingModel, DrawingSettings, DrawnImage, Generation
from engine.requests import DrawingRequest, GenerationRequest
from engine.run import device_name, find_device
from engine.sampling.hybrid import Hybrid, num_tuned_steps
from engine.sampling.rollout import Velocity, sample_ode
from engine.settings import EvaluationSettings, RunSettings, Section
from engine.tuning import make_trainable
from engine.versions import versions
from engine.whole_files import write_whole

Tell = Callable[[str, int, int], None]
"""(what is being drawn, images done, images in all)"""


@dataclass(frozen=True)
class Source:
    """What is to draw, not loaded yet.

    Attributes:
        settings: the run's.
        trained: the tuned weights; None = the base model that the settings name.
        hybrid: share p of the steps drawn with them.
    """

    settings: RunSettings
    trained: TrainedWeights | None
    hybrid: float


def open_source(folder: Path, step: int | None, hybrid: float) -> Source:
    """The checkpoint that a folder and a step name, read and verified; its base model is there.

    Raises ValueError (CheckpointError, SettingsError) with a sentence.
    """
    trained = read_trained(locate_checkpoint(folder, step))
    model_folder(trained.settings.model)
    return Source(trained.settings, trained, hybrid)


def base_of(source: Source) -> Source:
    """The base model that a checkpoint was tuned from."""
    return Source(source.settings, None, 0.0)


def drawing_settings(request: DrawingRequest, source: Source) -> DrawingSettings:
    """How and where to draw: as is asked for, and else as the run evaluates."""
    settings = source.settings
    if settings.compute.num_threads:
        torch.set_num_threads(settings.compute.num_threads)
    device = find_device(request.device or settings.compute.device)
    evaluation = request.evaluation(settings.evaluation)
    return DrawingSettings(
        seed=evaluation.seed, num_steps=evaluation.num_steps, guidance_scale=evaluation.guidance_scale,
        resolution=settings.model.resolution, precision=settings.model.precision,
        device="cuda" if device.type == "cuda" else "cpu", device_name=device_name(device),
        micro_batch=fixed_size(settings.compute, device),
    )  # fmt: skip


def describe(source: Source, drawing: DrawingSettings) -> DrawingModel:
    """What drew, for a report."""
    trained, num_tuned = source.trained, num_tuned_steps(source.hybrid, drawing.num_steps)
    name = "base model"
    if trained is not None:
        name = f"{trained.path.resolve().parent.parent.name}, step {trained.manifest.step}"
        if num_tuned < drawing.num_steps:
            name += f", tuned for {num_tuned} of {drawing.num_steps} steps"
    return DrawingModel(
        name=name,
        checkpoint=trained.path if trained else None,
        step=trained.manifest.step if trained else None,
        averaged=trained is not None and trained.averaged,
        num_tuned_steps=num_tuned,
        settings=source.settings,
        settings_digest=source.settings.digest(),
        trained_with=trained.manifest.versions if trained else {},
    )


def draw_images(source: Source, prompts: Sequence[str], drawing: DrawingSettings) -> Iterator[np.ndarray]:
    """uint8 images (B, H, W, 3), a micro-batch at a time; image i follows prompt i from seed `drawing.seed` + i."""
    model, sample = _load(source, drawing)
    sizes = fixed_sizes(drawing.micro_batch, torch.device(drawing.device))

    def velocity_of(of: Sequence[str], guidance_scale: float) -> Velocity:
        return prompt_velocity(model, model.encode(of), guidance_scale, drawing.precision)

    for start in range(0, len(prompts), drawing.micro_batch):
        part = prompts[start : start + drawing.micro_batch]
        evaluation = EvaluationSettings(
            seed=drawing.seed + start, num_steps=drawing.num_steps, guidance_scale=drawing.guidance_scale
        )
        yield draw(model, velocity_of, part, evaluation, sizes, sample=sample)


def generate(request: GenerationRequest, tell: Tell) -> Generation:
    """Draw the prompts into the folder asked for, and leave a report there. Raises ValueError with a sentence."""
    source = open_source(request.run, request.step, request.hybrid)
    drawing = drawing_settings(request, source)
    claim_folder(request.out, GENERATION_NAME)
    model = describe(source, drawing)
    images: list[DrawnImage] = []
    for batch in draw_images(source, request.prompts, drawing):
        for path in save_images(batch, request.out, first=len(images)):
            i = len(images)
            images.append(DrawnImage(prompt=request.prompts[i], seed=drawing.seed + i, path=path.name))
        tell(model.name, len(images), len(request.prompts))
    generation = Generation(
        created=time.time(), request=request, drawing=drawing, model=model, images=tuple(images), versions=versions()
    )
    write_report(generation, request.out / GENERATION_NAME)
    return generation


def claim_folder(out: Path, report_name: str) -> None:
    """Make the folder before anything is drawn. Raises ValueError if it is none, or holds a finished report."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for --out.")
    if (out / report_name).exists():
        raise ValueError(f"{out} already holds {report_name} and its images; choose another --out folder.")
    out.mkdir(parents=True, exist_ok=True)


def write_report(report: Section, path: Path) -> None:
    """Write a report as JSON; it comes last, so a folder with one is complete."""
    write_whole(path, report.model_dump_json(indent=1) + "\n")


def _load(source: Source, drawing: DrawingSettings) -> tuple[TextToImage, Sample]:
    """The model with its weights, on its device, and how it samples."""
    # Both models of a pair draw alike, whatever each run's own precision and resolution.
    alike = {"resolution": drawing.resolution, "precision": drawing.precision}
    with quiet_libraries():
        device = torch.device(drawing.device)
        model = place(load_model(source.settings.model.model_copy(update=alike)), source.settings, device)
        place_transformer(model, source.settings, device)
        if source.trained is None:
            return model, sample_ode
        num_tuned = num_tuned_steps(source.hybrid, drawing.num_steps)
        trainable = make_trainable(
            model, source.settings.tuning, source.settings.seed, keep_base=num_tuned < drawing.num_steps
        )
    trainable.load(source.trained.tensors)
    return model, Hybrid(num_tuned, trainable.left_out).sample
