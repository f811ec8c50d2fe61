"""`palate evaluate`: a checkpoint's scores on a set of prompts, by itself or in pairs with another or the base model.

Both models draw every prompt from the same seed, so that what differs between two images of a pair is the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from engine.catalogue import REWARD_INFO
from engine.evaluation import save_images
from engine.image_grid import GridColumn, GridRow, image_grid
from engine.inference import (
    Source,
    Tell,
    base_of,
    claim_folder,
    describe,
    draw_images,
    drawing_settings,
    open_source,
    write_report,
)
from engine.intervals import Comparison, compare, mean_of
from engine.models import model_folder
from engine.prompt_files import read_prompts
from engine.prompts import load_prompts
from engine.reports import EVALUATION_NAME, GRID_NAME, DrawingSettings, Evaluation, Scored, ScoredImage
from engine.requests import EvaluationRequest
from engine.rewards import Reward, make_rewards, score_all
from engine.settings import RewardSettings, RunSettings
from engine.settings_text import SettingsError, explain
from engine.versions import versions

NUM_GRID_PROMPTS = 32


def evaluate_checkpoints(request: EvaluationRequest, tell: Tell) -> Evaluation:
    """Draw, score and compare; images, a grid and the report are left in the folder asked for.

    Raises ValueError with a sentence for what cannot work, before anything is drawn.
    """
    begun = time.perf_counter()
    source = open_source(request.run, request.step, request.hybrid)
    rival = _rival(request, source)
    prompts, prompts_from = _prompts(request, source.settings)
    drawing = drawing_settings(request, source)
    rewards = make_rewards(_rewards(request, source.settings), torch.device(drawing.device))
    for reward in rewards.values():
        reward.check_prompts(prompts)
    claim_folder(request.out, EVALUATION_NAME)

    def scored(of: Source, folder: str) -> Scored:
        return _score(of, prompts, rewards, drawing, folder=request.out / folder, tell=tell)

    evaluated = scored(source, "evaluated")
    against = scored(rival, "against") if rival else None
    _draw_grid([evaluated, against] if against else [evaluated], request.out)
    report = Evaluation(
        created=time.time(), request=request, drawing=drawing, prompts_from=prompts_from,
        evaluated=evaluated, against=against, comparisons=_comparisons(evaluated, against) if against else {},
        versions=versions(), seconds=time.perf_counter() - begun,
    )  # fmt: skip
    write_report(report, request.out / EVALUATION_NAME)
    return report


def _rival(request: EvaluationRequest, source: Source) -> Source | None:
    """What to compare with, if anything. Raises ValueError if it was tuned from another base model."""
    if request.against is None:
        return None
    if request.against == "base":
        return base_of(source)
    rival = open_source(Path(request.against), None, request.against_hybrid)
    ours, theirs = (_base_of(of) for of in (source, rival))
    if ours != theirs:
        raise ValueError(
            f"{request.run} was tuned from the model in {ours} and {request.against} from another, in {theirs}, so "
            "their images make no pairs; evaluate each by itself."
        )
    return rival


def _base_of(source: Source) -> str:
    """The base model of a run, for a sentence: its folder, and what it was started from."""
    model = source.settings.model
    folder = str(model_folder(model).resolve())
    return folder if model.start_from is None else f"{folder} (started from {Path(model.start_from).resolve()})"


def _prompts(request: EvaluationRequest, settings: RunSettings) -> tuple[tuple[str, ...], str]:
    """The prompts of the file, or the run's held-out ones, as many as asked for or as there are; and whose they are."""
    if request.prompts is not None:
        return read_prompts(request.prompts).prompts[: request.num_prompts], str(request.prompts)
    if request.num_prompts is not None:
        # May pass EvaluationSettings' own limit, which is a gallery's.
        evaluation = settings.evaluation.model_copy(update={"num_prompts": request.num_prompts})
        settings = settings.model_copy(update={"evaluation": evaluation})
    return load_prompts(settings).held_out, "the run's held-out prompts"


def _rewards(request: EvaluationRequest, settings: RunSettings) -> tuple[RewardSettings, ...]:
    """The rewards asked for: the run's own, with their options, or others as they are without. Raises ValueError."""
    of_run = {reward.key: reward for reward in settings.rewards}
    unknown = [name for name in request.rewards if name not in of_run and name not in REWARD_INFO]
    if unknown:
        known = dict.fromkeys([*of_run, *REWARD_INFO])
        raise ValueError(f"There is no reward named {unknown[0]}; choose among: {', '.join(known)}.")
    try:
        asked = [of_run.get(name) or RewardSettings.model_validate({"name": name}) for name in request.rewards]
    except ValidationError as error:
        raise SettingsError(explain(error)) from error
    return tuple(asked) or settings.rewards


def _score(
    source: Source,
    prompts: Sequence[str],
    rewards: Mapping[str, Reward],
    drawing: DrawingSettings,
    *,
    folder: Path,
    tell: Tell,
) -> Scored:
    """Draw the prompts with one model, batch by batch, save the images into `folder`, and score them."""
    model = describe(source, drawing)
    images: list[ScoredImage] = []
    notes: list[str] = []
    for batch in draw_images(source, prompts, drawing):
        first = len(images)
        part = prompts[first : first + len(batch)]
        result = score_all(rewards, batch, part)
        notes += result.messages
        for i, path in enumerate(save_images(batch, folder, first=first)):
            measured = {name: float(column[i]) for name, column in {**result.values, **result.extras}.items()}
            images.append(
                ScoredImage(
                    prompt=part[i],
                    seed=drawing.seed + first + i,
                    path=f"{folder.name}/{path.name}",
                    scores={name: value for name, value in measured.items() if math.isfinite(value)},
                )
            )
        tell(model.name, len(images), len(prompts))
    measures = dict.fromkeys(name for image in images for name in image.scores)
    means = {name: mean_of(_column(images, name)) for name in measures}
    return Scored(
        model=model,
        images=tuple(images),
        means={name: mean for name, mean in means.items() if mean},
        notes=tuple(notes),
    )


def _column(images: Sequence[ScoredImage], measure: str) -> list[float]:
    return [image.scores.get(measure, math.nan) for image in images]


def _comparisons(evaluated: Scored, against: Scored) -> dict[str, Comparison]:
    """By measure, wherever some pair has both scores."""
    found = {
        name: compare(_column(evaluated.images, name), _column(against.images, name)) for name in evaluated.means
    }
    return {name: comparison for name, comparison in found.items() if comparison}


def _draw_grid(models: Sequence[Scored], out: Path) -> None:
    """`grid.png`: a column a prompt and seed, a row a model, each tile with its scores; the first prompts alone."""
    shown = models[0].images[:NUM_GRID_PROMPTS]
    columns = [GridColumn(heading=image.prompt, note=f"seed {image.seed}") for image in shown]
    image_grid(columns, [_grid_row(scored, len(shown), out) for scored in models]).save(out / GRID_NAME)


def _grid_row(scored: Scored, num_shown: int, out: Path) -> GridRow:
    shown = scored.images[:num_shown]
    return GridRow(
        title=scored.model.name,
        tiles=[np.asarray(Image.open(out / image.path)) for image in shown],
        captions=[[_caption(name, value) for name, value in image.scores.items()] for image in shown],
    )


def _caption(measure: str, value: float) -> str:
    return f"{measure} {value:.2f}".replace("_", " ").replace("-", "−")
