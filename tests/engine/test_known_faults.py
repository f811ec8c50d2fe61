"""Faults of the published MixGRPO code, looked for in whole training iterations of a tiny pipeline.

What a fault does to one function is tested beside that function; docs/proofs.md lists which test holds which fault.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from engine.artifacts.checkpoint import load_checkpoint
from engine.events import Event, IterationDone, SamplesDrawn
from engine.rewards import REWARDS, Pixels, Scores
from engine.sampling.rollout import make_plan
from engine.settings import RunSettings
from engine.train import train

# Of the tiny run: two prompts of four images, eight steps, two of them in the window.
PROMPTS, GROUP, STEPS, WINDOW = 2, 4, 8, 2


@dataclass(frozen=True)
class Call:
    """One call of the transformer: the timestep of each image, and whether it is one of training."""

    timesteps: list[float]
    trains: bool


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of the transformer, as it is made."""
    seen: list[Call] = []
    forward = SD3Transformer2DModel.forward
    signature = inspect.signature(forward)

    def watched(self: SD3Transformer2DModel, *args: Any, **kwargs: Any) -> Any:
        timesteps = signature.bind(self, *args, **kwargs).arguments["timestep"]
        seen.append(Call(timesteps.tolist(), torch.is_grad_enabled()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SD3Transformer2DModel, "forward", watched)
    return seen


class FakeReward:
    """Scores image i of a batch by rule(i), and remembers the prompts of each batch."""

    def __init__(self, rule: Callable[[int], float]) -> None:
        self.rule = rule
        self.batches: list[list[str]] = []

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Any will do."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        self.batches.append(list(prompts))
        return Scores(np.array([self.rule(image) for image in range(len(images))], dtype=np.float32))


def changed(settings: RunSettings, **sections: Any) -> RunSettings:
    return RunSettings.model_validate(settings.model_dump() | sections)


def run(settings: RunSettings, out: Path) -> list[Event]:
    events: list[Event] = []
    train(settings, out, events.append)
    return events


def iterations(events: list[Event]) -> list[IterationDone]:
    return [event for event in events if isinstance(event, IterationDone)]


def scored_by(
    rule: Callable[[int], float], settings: RunSettings, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], IterationDone]:
    """One iteration scored by the rule: the prompts its images were scored for, and its event."""
    reward = FakeReward(rule)
    monkeypatch.setitem(REWARDS, "vividness", lambda settings, device: reward)
    (event,) = iterations(run(changed(settings, iterations=1, rewards=[{"name": "vividness"}]), out))
    # The iteration's own batch lies between the held-out prompts at step 0 and those at step 1.
    _, prompts, _ = reward.batches
    return prompts, event


def test_every_iteration_of_a_cycle_trains_a_full_window(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """Fault 1: before it wraps, the window shrinks to 3, 2, 1, then 0 steps, and nothing is trained."""
    events = iterations(run(changed(tiny_settings, iterations=6), tmp_path))
    assert [event.window_start for event in events] == [0, 1, 2, 3, 4, 0]
    assert [event.num_trained_steps for event in events] == [PROMPTS * GROUP * WINDOW] * 6


@pytest.mark.parametrize("flash", [False, True], ids=["euler", "flash"])
def test_the_transformer_is_given_every_sigma_untruncated(
    tiny_settings: RunSettings, tmp_path: Path, calls: list[Call], flash: bool
) -> None:
    """Fault 3: timesteps are truncated to whole numbers before they enter the transformer."""
    settings = changed(
        tiny_settings, iterations=1, sampling={"num_steps": STEPS, "shift": 2.9}, flash={"enabled": flash},
        window={"size": WINDOW, "start": 3, "strategy": "frozen"},
    )  # fmt: skip
    made: list[Call] = []

    def emit(event: Event) -> None:
        if isinstance(event, SamplesDrawn):
            calls.clear()
        elif isinstance(event, IterationDone):
            made.extend(calls)

    train(settings, tmp_path, emit)
    plan = make_plan(settings.sampling, settings.flash, 3, WINDOW)
    wanted = [1000 * sigma for sigma in (*plan.sigmas[: plan.window_end], *plan.tail_grid[:-1])]
    drawn = [call.timesteps[0] for call in made if not call.trains]
    assert drawn == pytest.approx(wanted, rel=1e-6)
    assert {time for call in made if call.trains for time in call.timesteps} == set(drawn[3:5])
    assert all(time != int(time) for time in drawn[1:]), "this grid has no whole thousandths but σ = 1"


def test_a_group_is_drawn_in_one_batch_and_its_prefix_once(
    tiny_settings: RunSettings, tmp_path: Path, calls: list[Call]
) -> None:
    """Fault 7: images are drawn one at a time, and the prefix a group shares is computed for each of them."""
    settings = changed(tiny_settings, iterations=1, window={"size": WINDOW, "start": 3, "strategy": "frozen"})
    rows: list[int] = []

    def emit(event: Event) -> None:
        if isinstance(event, SamplesDrawn):
            calls.clear()
        elif isinstance(event, IterationDone):
            rows.extend(len(call.timesteps) for call in calls if not call.trains)
            assert event.num_forwards == sum(rows)

    train(settings, tmp_path, emit)
    assert rows == [PROMPTS] * 3 + [PROMPTS * GROUP] * (STEPS - 3)


def test_an_image_that_could_not_be_scored_teaches_nothing(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 5: a failure scores 0.0. Beside siblings that all score 1 it would be the only lesson of its group."""
    _, event = scored_by(lambda image: np.nan if image == 2 else 1.0, tiny_settings, tmp_path, monkeypatch)
    assert (event.failed_scores, event.rewards["vividness"]) == (1, 1.0)
    assert (event.num_trained_steps, event.loss) == (0, 0.0)


def test_every_prompt_of_a_batch_is_scored_and_trained_on(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 8: only prompt 0 of a batch is handled. Here the images of prompt 1 alone differ in their scores."""
    prompts, event = scored_by(lambda image: float(max(image, GROUP)), tiny_settings, tmp_path, monkeypatch)
    first, second = prompts[0], prompts[GROUP]
    assert first != second
    assert prompts == [first] * GROUP + [second] * GROUP
    assert event.num_trained_steps == GROUP * WINDOW


def test_averaged_weights_are_an_average_and_are_what_is_evaluated(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """Fault 6: EMA options do nothing."""
    settings = changed(
        tiny_settings, checkpoints={"every": 1, "keep": 9},
        grpo=tiny_settings.grpo.model_dump() | {"updates_per_iteration": 1},
    )  # fmt: skip
    plain, averaged = (
        run(changed(settings, optimiser={"learning_rate": 3e-2, "ema_decay": decay}), tmp_path / str(decay))
        for decay in (0.0, 0.8)
    )
    # Training itself is the same; what is drawn from it is not.
    assert [event.loss for event in iterations(averaged)] == [event.loss for event in iterations(plain)]
    (plain_base, *_, plain_end), (base, *_, end) = (
        [event.rewards for event in events if isinstance(event, SamplesDrawn)] for events in (plain, averaged)
    )
    assert base == plain_base
    assert end != plain_end
    files = [load_checkpoint(tmp_path / "0.8" / "checkpoints" / f"step-00000{i}").tensors for i in (1, 2, 3)]
    for before, after in pairwise(files):
        average, weights = after["ema.safetensors"], after["adapter.safetensors"]
        for name, value in average.items():
            torch.testing.assert_close(value, 0.8 * before["ema.safetensors"][name] + 0.2 * weights[name])
        assert max(float((value - weights[name]).abs().max()) for name, value in average.items()) > 1e-2
