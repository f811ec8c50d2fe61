"""Scores in the base model's own spread: what they are measured by, and where there is nothing to measure by."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from engine.events import IterationDone, SamplesDrawn, parse_event
from engine.standardised import Scale, scale_of, scales_of

SCORES = [0.25, 1.5, 0.75, 4.0]


def test_the_base_models_own_scores_have_mean_0_and_deviation_1() -> None:
    scale = scale_of(SCORES)
    assert scale is not None
    assert scale.std == pytest.approx(statistics.stdev(SCORES), rel=1e-12)
    standardised = [scale.standardised(score) for score in SCORES]
    assert statistics.mean(standardised) == pytest.approx(0.0, abs=1e-12)
    assert statistics.stdev(standardised) == pytest.approx(1.0, rel=1e-12)


def test_the_unit_of_a_reward_does_not_count() -> None:
    """Kilobytes or bytes: the figure is the same, and a mean's is the mean of the figures."""
    small, large = scale_of(SCORES), scale_of([1000 * score - 7 for score in SCORES])
    assert small is not None
    assert large is not None
    later = [2.0, 3.0, 1.0]
    mean = statistics.mean(later)
    assert large.standardised(1000 * mean - 7) == pytest.approx(small.standardised(mean), rel=1e-12)
    assert small.standardised(mean) == pytest.approx(statistics.mean(map(small.standardised, later)), rel=1e-12)


def test_failed_scores_are_left_out() -> None:
    assert scale_of([*SCORES, math.nan, math.inf]) == scale_of(SCORES)
    images = [{"a": 1.0, "b": 5.0}, {"b": 7.0}, {"a": 3.0, "b": 6.0}]
    assert scales_of(images) == {"a": Scale(2.0, math.sqrt(2)), "b": Scale(6.0, 1.0)}


@pytest.mark.parametrize("scores", [[], [1.0], [math.nan, 2.0], [0.1] * 3, [0.0] * 4, [1.0, 1.0 + 1e-9]])
def test_without_a_spread_nothing_is_told(scores: list[float]) -> None:
    assert scale_of(np.array(scores)) is None
    assert scales_of({"a": score} for score in scores) == {}


def test_events_tell_spreads_and_those_of_earlier_versions_none() -> None:
    told = (
        '{"kind": "iteration", "time": 1.0, "step": 1, "rewards": {"a": 0.5}, "loss": 0.1, "grad_norm": 1.0, '
        '"ratio_drift": 0.0, "clipped_share": 0.0, "window_start": 0, "num_forwards": 1, "num_trained_steps": 1, '
        '"seconds": {"sample": 1, "decode": 1, "score": 1, "train": 1}, "eta_seconds": 1.0'
    )
    earlier, event = parse_event(told + "}"), parse_event(told + ', "spreads": {"a": 0.125}}')
    assert isinstance(earlier, IterationDone)
    assert earlier.spreads == {}
    assert isinstance(event, IterationDone)
    assert event.spreads == {"a": 0.125}
    assert parse_event(event.model_dump_json()) == event


def test_an_evaluations_event_holds_all_that_its_scale_is_made_of() -> None:
    images = [
        {"index": i, "prompt": "p", "seed": i, "path": "x.png", "rewards": {} if i == 2 else {"a": float(i)}}
        for i in range(4)
    ]
    event = SamplesDrawn.model_validate({"time": 1.0, "step": 0, "images": images, "rewards": {}, "seconds": 1.0})
    read = parse_event(event.model_dump_json())
    assert isinstance(read, SamplesDrawn)
    assert scales_of(image.rewards for image in read.images) == {"a": scale_of([0.0, 1.0, 3.0])}
