"""What the guards notice, that they say it once, and what a run does then."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.artifacts.checkpoint import load_checkpoint
from engine.events import CheckpointSaved, Event, IterationDone, Message, SamplesDrawn
from engine.guards import Guards
from engine.run import prepare
from engine.settings import GuardSettings, RunSettings
from engine.train import sample_and_score, train, update


def _guards(**limits: Any) -> Guards:
    return Guards(GuardSettings(**limits), {"vividness": 1.0, "composition": 0.0})


def test_a_gradient_that_explodes_is_told_from_one_that_varies() -> None:
    guards = _guards(max_grad_growth=10.0)
    assert [guards.explodes(0.1, norm) for norm in (1.0, 3.0, 0.5, 2.0, 9.0)] == [""] * 5
    assert "20 times what it was lately" in guards.explodes(0.1, 40.0)
    assert guards.explodes(0.1, 4.0) == "", "one that exploded is not what it was lately"


@pytest.mark.parametrize("figures", [(float("nan"), 1.0), (0.1, float("inf"))])
def test_no_number_is_never_taken(figures: tuple[float, float]) -> None:
    assert "no longer a finite number" in _guards().explodes(*figures)


def test_an_alarm_speaks_once_until_it_has_ended() -> None:
    guards = _guards(max_ratio_drift=0.1)
    told = [guards.after_iteration(drift, 0.2) for drift in (0.05, 0.3, 0.4, 0.05, 0.3)]
    assert [len(sentences) for sentences in told] == [0, 1, 0, 0, 1]
    assert "off by 0.3 (limit 0.1)" in told[1][0]


def test_collapsing_diversity_is_measured_against_the_start() -> None:
    guards = _guards(min_diversity=0.5)
    told = [guards.after_iteration(0.0, diversity) for diversity in (0.20, 0.11, 0.09)]
    assert [len(sentences) for sentences in told] == [0, 0, 1]
    assert "differ by 0.090, and by 0.200 at the start" in told[2][0]


def test_a_watched_reward_that_falls_while_another_rises() -> None:
    guards = _guards(max_watched_fall=0.2)
    assert guards.after_evaluation({"vividness": 0.5, "composition": 0.8}) == []
    assert guards.after_evaluation({"vividness": 0.7, "composition": 0.65}) == [], "not far enough"
    assert guards.after_evaluation({"vividness": 0.4, "composition": 0.5}) == [], "nothing rises"
    (sentence,) = guards.after_evaluation({"vividness": 0.7, "composition": 0.5})
    assert "vividness rises while composition, which is only watched, falls: from 0.8 to 0.5" in sentence


def test_what_is_remembered_survives_json() -> None:
    guards, again = _guards(), _guards()
    guards.explodes(0.1, 2.0)
    guards.after_iteration(1.0, 0.3)
    guards.after_evaluation({"vividness": 0.5})
    again.restore(json.loads(json.dumps(guards.state())))
    assert again.state() == guards.state()
    assert again.after_iteration(1.0, 0.3) == [], "still the same alarm"


def _with(settings: RunSettings, **changes: Any) -> RunSettings:
    return RunSettings.model_validate(settings.model_dump() | changes)


def test_diversity_is_the_difference_of_two_images(tiny_settings: RunSettings, tmp_path: Path) -> None:
    run = prepare(tiny_settings, tmp_path, lambda _: None, None)
    batch = sample_and_score(run)
    images = run.model.decode(batch.rollout.latents).astype(np.float64).reshape(2, 4, -1) / 255
    squares = [
        np.mean((group[i] - group[j]) ** 2) for group in images for i in range(4) for j in range(4) if i != j
    ]
    assert batch.diversity == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)


def test_an_update_that_is_no_number_is_skipped_where_the_settings_say_so(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    events: list[Event] = []
    run = prepare(_with(tiny_settings, guards={"action": "skip"}), tmp_path, events.append, None)
    batch = sample_and_score(run)
    batch.rollout.log_probs[:] = float("nan")
    before = run.trainable.state()
    update(run, batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.trainable.state().items())
    assert ["This update is skipped." in event.text for event in events if isinstance(event, Message)] == [True, True]


@pytest.fixture
def alarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alarm after the second iteration."""

    def once(self: Guards, drift: float, diversity: float) -> list[str]:
        self.memory.grad_norms.append(0.0)
        return ["Something is wrong."] if len(self.memory.grad_norms) % 100 == 6 else []

    monkeypatch.setattr(Guards, "after_iteration", once)


@pytest.mark.usefixtures("alarmed")
def test_a_run_that_is_to_stop_stops_with_a_checkpoint(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """After the evaluation that was due, which no one would draw later; and with one event."""
    events: list[Event] = []
    settings = _with(tiny_settings, guards={"action": "stop"}, checkpoints={"every": 2})
    with pytest.raises(ValueError, match=r"^Stopped after iteration 2\. Something is wrong\.$"):
        train(settings, tmp_path, events.append)
    assert load_checkpoint(tmp_path / "checkpoints" / "step-000002").step == 2
    assert sum(isinstance(event, IterationDone) for event in events) == 2
    assert [event.step for event in events if isinstance(event, SamplesDrawn)] == [0, 2]
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [2]


@pytest.mark.parametrize(("update_at_fault", "saved"), [(3, [1]), (4, [])])
def test_a_stop_for_an_update_saves_what_no_update_of_its_iteration_has_changed(
    tiny_settings: RunSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    update_at_fault: int,
    saved: list[int],
) -> None:
    """Two updates an iteration: the third is the first of the second iteration."""
    asked = count(1)
    monkeypatch.setattr(Guards, "explodes", lambda *_: "No." if next(asked) == update_at_fault else "")
    events: list[Event] = []
    settings = _with(tiny_settings, guards={"action": "stop"}, checkpoints={"every": 4})
    with pytest.raises(ValueError, match=r"^Stopped in iteration 2\. No\.$"):
        train(settings, tmp_path, events.append)
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == saved


@pytest.mark.usefixtures("alarmed")
def test_a_reported_alarm_lets_the_run_go_on(tiny_settings: RunSettings, tmp_path: Path) -> None:
    events: list[Event] = []
    train(tiny_settings, tmp_path, events.append)
    assert sum(isinstance(event, IterationDone) for event in events) == 4
    warnings = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    assert warnings == ["After iteration 2: Something is wrong."]


def test_failed_scores_past_their_share_end_the_run(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(tiny_settings, tmp_path, lambda _: None, None)
    reward = type(run.rewards["vividness"])

    def broken(self: object, images: object, prompts: object) -> None:
        raise RuntimeError("the judge is gone")

    monkeypatch.setattr(reward, "score", broken)
    events: list[Event] = []
    with pytest.raises(ValueError, match=r"Stopped after iteration 0\. 100% of the scores of the reward vividness"):
        train(tiny_settings, tmp_path, events.append)
    assert any("the judge is gone" in event.text for event in events if isinstance(event, Message))
