"""`palate evaluate`'s report: figures that follow from its images, pairs that are pairs, refusals in sentences."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.assessment import NUM_GRID_PROMPTS, evaluate_checkpoints
from engine.image_grid import NUM_COLUMNS, TILE_WIDTH
from engine.intervals import mean_of
from engine.prompt_files import PromptFileError
from engine.reports import EVALUATION_NAME, GRID_NAME, Evaluation, Scored
from engine.requests import EvaluationRequest
from engine.rewards import REWARDS, Pixels, Scores, make_rewards
from engine.settings import RewardSettings

TinyRun = Callable[..., Path]


def evaluate(run: Path, out: Path, **changes: Any) -> Evaluation:
    request = EvaluationRequest.model_validate({"run": run, "out": out} | changes)
    evaluation = evaluate_checkpoints(request, lambda *_: None)
    assert Evaluation.model_validate_json((out / EVALUATION_NAME).read_text()) == evaluation
    return evaluation


def images_of(scored: Scored, out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(out / image.path)) for image in scored.images])


def column(scored: Scored, measure: str) -> list[float]:
    return [image.scores[measure] for image in scored.images]


def test_a_checkpoint_alone_has_the_scores_of_its_gallery(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    evaluation = evaluate(run, tmp_path / "out")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    gallery = [event for event in events if event["kind"] == "samples"][-1]
    assert (evaluation.evaluated.model.step, evaluation.against, evaluation.comparisons) == (2, None, {})
    assert {name: mean.value for name, mean in evaluation.evaluated.means.items()} == pytest.approx(gallery["rewards"])
    tiles = [(image["prompt"], image["seed"], image["rewards"]) for image in gallery["images"]]
    assert [(image.prompt, image.seed, image.scores) for image in evaluation.evaluated.images] == tiles


def test_scores_are_those_of_the_saved_images(tiny_run: TinyRun, tmp_path: Path) -> None:
    prompts = tmp_path / "unseen.txt"
    prompts.write_text("the red star\na blue square\nlarge circle\n")
    chosen = ("compressibility", "vividness")
    evaluation = evaluate(tiny_run(), tmp_path / "out", prompts=prompts, rewards=chosen, against="base", seed=5)
    for scored in (evaluation.evaluated, evaluation.against):
        assert scored is not None
        assert list(scored.means) == list(chosen)
        assert [image.seed for image in scored.images] == [5, 6, 7]
        for name, reward in make_rewards([RewardSettings(name=name) for name in chosen], torch.device("cpu")).items():
            values = reward.score(images_of(scored, tmp_path / "out"), prompts.read_text().splitlines()).values
            assert column(scored, name) == pytest.approx(values.tolist())
            assert scored.means[name] == mean_of(column(scored, name))
    assert evaluation.prompts_from == str(prompts)


def test_the_difference_is_told_in_the_base_models_spread_too(tiny_run: TinyRun, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a red circle\ntwo blue squares\na green star\n")
    evaluation = evaluate(tiny_run(), tmp_path / "out", against="base", prompts=prompts)
    assert evaluation.against is not None
    spread = statistics.stdev(column(evaluation.against, "vividness"))
    comparison = evaluation.comparisons["vividness"]
    assert comparison.standardised == pytest.approx(comparison.difference.value / spread)


def test_against_the_base_model_in_pairs(tiny_run: TinyRun, tmp_path: Path) -> None:
    evaluation = evaluate(tiny_run(), tmp_path / "out", against="base", num_prompts=1)
    assert evaluation.against is not None
    assert (evaluation.against.model.step, evaluation.against.model.num_tuned_steps) == (None, 0)
    first, second = column(evaluation.evaluated, "vividness"), column(evaluation.against, "vividness")
    comparison = evaluation.comparisons["vividness"]
    assert comparison.difference.value == pytest.approx(first[0] - second[0])
    assert comparison.difference.low is None
    assert comparison.num_wins + comparison.num_ties + comparison.num_losses == 1
    assert [image.prompt for image in evaluation.evaluated.images] == [i.prompt for i in evaluation.against.images]


def test_two_checkpoints_of_different_tuning_are_drawn_alike(
    tiny_run: TinyRun, tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    """A LoRA against a full fine-tune in another precision; at hybrid 0 both are the base, and tie to the bit."""
    model = {"folder": str(tiny_pipeline_folder), "precision": "bfloat16"}
    first, second = tiny_run("first"), tiny_run("second", tuning={"method": "full"}, seed=9, model=model)
    checkpoint = second / "checkpoints" / "step-000001"
    out = tmp_path / "differ"
    evaluation = evaluate(first, out, against=checkpoint)
    assert evaluation.against is not None
    assert (evaluation.evaluated.model.name, evaluation.against.model.name) == ("first, step 2", "second, step 1")
    assert not np.array_equal(images_of(evaluation.evaluated, out), images_of(evaluation.against, out))

    out = tmp_path / "tie"
    evaluation = evaluate(first, out, against=checkpoint, hybrid=0.0, against_hybrid=0.0)
    assert evaluation.against is not None
    assert np.array_equal(images_of(evaluation.evaluated, out), images_of(evaluation.against, out))
    for comparison in evaluation.comparisons.values():
        assert (comparison.win_rate.value, comparison.num_ties, comparison.difference.value) == (0.5, 1, 0.0)


def test_hybrid_is_for_the_evaluated_model_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    evaluation = evaluate(run, tmp_path / "out", hybrid=0.5, against=run)
    assert evaluation.against is not None
    assert (evaluation.evaluated.model.num_tuned_steps, evaluation.against.model.num_tuned_steps) == (2, 4)
    assert evaluation.evaluated.model.name == "run, step 2, tuned for 2 of 4 steps"


def test_a_grid_shows_the_first_prompts(tiny_run: TinyRun, tmp_path: Path) -> None:
    prompts = tmp_path / "many.txt"
    prompts.write_text("".join(f"red star {i}\n" for i in range(NUM_GRID_PROMPTS + 3)))
    out = tmp_path / "out"
    evaluation = evaluate(tiny_run(), out, prompts=prompts, num_steps=1, against="base")
    assert len(evaluation.evaluated.images) == NUM_GRID_PROMPTS + 3
    with Image.open(out / GRID_NAME) as grid:
        assert NUM_COLUMNS * TILE_WIDTH < grid.width < (NUM_COLUMNS + 2) * TILE_WIDTH
        num_rows = 2 * NUM_GRID_PROMPTS // NUM_COLUMNS
        assert num_rows * TILE_WIDTH < grid.height < 1.7 * num_rows * TILE_WIDTH


class FailsOnStars:
    """A reward that cannot see stars."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        pass

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        values = [math.nan if "star" in prompt else images[i].mean() / 255 for i, prompt in enumerate(prompts)]
        return Scores(np.array(values, dtype=np.float32))


def test_scores_that_fail_are_left_out_and_said(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "vividness", lambda settings, device: FailsOnStars())
    prompts = tmp_path / "some.txt"
    prompts.write_text("red star\nblue square\ngreen circle\n")
    evaluation = evaluate(tiny_run(), tmp_path / "out", prompts=prompts, rewards=("vividness",), against="base")
    assert "vividness" not in evaluation.evaluated.images[0].scores
    assert evaluation.evaluated.means["vividness"].count == 2
    assert evaluation.comparisons["vividness"].difference.count == 2
    assert "could not score 1 of 3 images" in evaluation.evaluated.notes[0]


# Refusals -------------------------------------------------------------------------------------------------------------


def test_checkpoints_of_two_base_models_are_refused(
    tiny_run: TinyRun, tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    other = tmp_path / "other"
    other.symlink_to(tiny_pipeline_folder)
    same = tiny_run("same", model={"folder": str(other)})
    run = tiny_run()
    evaluate(run, tmp_path / "the same by another name", against=same)
    other.unlink()
    shutil.copytree(tiny_pipeline_folder, other)
    with pytest.raises(ValueError, match="images make no pairs; evaluate each by itself"):
        evaluate(run, tmp_path / "out", against=same)
    assert not (tmp_path / "out").exists()


def test_prompts_that_cannot_be_used_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    run, empty, prose = tiny_run(), tmp_path / "empty.txt", tmp_path / "prose.txt"
    empty.write_text("\n \n")
    prose.write_text("an oil painting of a lighthouse\n")
    with pytest.raises(PromptFileError, match=r"empty\.txt is empty"):
        evaluate(run, tmp_path / "out", prompts=empty)
    with pytest.raises(PromptFileError, match="cannot be read"):
        evaluate(run, tmp_path / "out", prompts=tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match='"composition" cannot judge the prompt "an oil painting'):
        evaluate(run, tmp_path / "out", prompts=prose, rewards=("composition",))
    with pytest.raises(ValueError, match="There is no reward named beauty; choose among: vividness, incompress"):
        evaluate(run, tmp_path / "out", rewards=("beauty",))
    assert not (tmp_path / "out").exists()


def test_a_finished_evaluation_is_not_overwritten(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    evaluate(run, tmp_path / "out", num_prompts=1)
    with pytest.raises(ValueError, match=r"already holds evaluation\.json"):
        evaluate(run, tmp_path / "out", num_prompts=1)
