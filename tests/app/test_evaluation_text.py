"""An evaluation as text: the figures with their intervals, aligned, and what a reader must know of them."""

from __future__ import annotations

from pathlib import Path

from app.evaluation_text import evaluation_text
from engine.intervals import compare, mean_of
from engine.reports import DrawingModel, DrawingSettings, Evaluation, Scored, ScoredImage
from engine.requests import EvaluationRequest
from engine.settings import RunSettings

TUNED = {"vividness": [0.9, 0.8, 1.0, 0.9], "all_correct": [1.0, 0.0, 0.0, 1.0]}
BASE = {"vividness": [0.6, 0.7, 1.1, 0.5], "all_correct": [1.0, 1.0, 0.0, 1.0]}
ROWS = [
    "              evaluated              against                difference                in std   win rate",
    "vividness     0.900 [0.770, 1.030]   0.725 [0.307, 1.143]   +0.175 [−0.178, +0.528]   +0.67    75 % [30 %, 95 %]",
    "all correct   0.500 [0.150, 0.850]   0.750 [0.301, 0.954]   −0.250 [−1.046, +0.546]   −0.50    38 % [9 %, 78 %]",
]


def scored(name: str, columns: dict[str, list[float]], notes: tuple[str, ...] = (), averaged: bool = False) -> Scored:
    settings = RunSettings()
    model = DrawingModel(
        name=name, checkpoint=None, step=None, averaged=averaged, num_tuned_steps=25, settings=settings,
        settings_digest=settings.digest(), trained_with={},
    )  # fmt: skip
    count = len(next(iter(columns.values())))
    images = tuple(
        ScoredImage(
            prompt="a star", seed=7 + i, path=f"{i}.png", scores={name: values[i] for name, values in columns.items()}
        )
        for i in range(count)
    )
    return Scored(model=model, images=images, means={n: mean_of(values) for n, values in columns.items()}, notes=notes)


def evaluation(evaluated: Scored, against: Scored | None = None) -> Evaluation:
    drawing = DrawingSettings(
        seed=7, num_steps=25, guidance_scale=1.5, resolution=None, precision="bfloat16", device="cpu",
        device_name="CPU", micro_batch=8,
    )
    comparisons = {
        name: compare([image.scores[name] for image in evaluated.images], [i.scores[name] for i in against.images])
        for name in (evaluated.means if against else ())
    }
    request = EvaluationRequest(run=Path("run"), out=Path("out"))
    return Evaluation(
        created=1.0, request=request, drawing=drawing, prompts_from="mine.txt", evaluated=evaluated, against=against,
        comparisons=comparisons, versions={}, seconds=1.0,
    )  # fmt: skip


def test_a_comparison_is_a_table() -> None:
    pair = evaluation(scored("mine, step 8", TUNED, averaged=True), scored("base model", BASE))
    lines = evaluation_text(pair).splitlines()
    assert lines[:4] == [
        "Evaluated  mine, step 8 (averaged weights)",
        "Against    base model",
        "Drawn      4 prompts (mine.txt), seeds 7 to 10, 25 steps, guidance 1.5, bfloat16 on CPU",
        "",
    ]
    assert lines[4:7] == ROWS
    assert lines[-2] == "In std: the difference in standard deviations of the base model's scores."
    assert "a tie counted as half" in lines[-1]


def test_a_checkpoint_alone_has_no_columns_to_compare() -> None:
    lines = evaluation_text(evaluation(scored("mine, step 8", TUNED))).splitlines()
    assert lines[3:6] == [row[: len("vividness     0.900 [0.770, 1.030]")].rstrip() for row in ROWS]
    assert not any("Win rate" in line or "Against" in line for line in lines)


def test_one_image_has_figures_without_intervals() -> None:
    text = evaluation_text(evaluation(scored("mine", {"vividness": [0.25]}), scored("base", {"vividness": [0.5]})))
    assert "1 prompt (mine.txt), seed 7, " in text
    assert "vividness   0.250       0.500     −0.250       –        0 % [0 %, 79 %]" in text


def test_failed_scores_are_said() -> None:
    text = evaluation_text(evaluation(scored("mine", TUNED, notes=("The reward x could not score 1 image.",))))
    assert text.splitlines()[-1] == "mine: The reward x could not score 1 image."
