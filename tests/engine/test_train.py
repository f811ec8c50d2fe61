"""The training loop on a tiny pipeline: on policy, repeatable, resumable to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.artifacts.checkpoint import load_checkpoint
from engine.events import CheckpointSaved, Event, Finished, IterationDone, Message, SamplesDrawn, Started
from engine.run import prepare
from engine.settings import RunSettings
from engine.train import sample_and_score, train, update

VARIANTS: dict[str, dict[str, Any]] = {
    "mixgrpo": {},
    "flash": {"flash": {"enabled": True}},
    "full, with EMA, the rate falling": {
        "tuning": {"method": "full"},
        "optimiser": {"learning_rate": 1e-4, "ema_decay": 0.9, "schedule": "cosine", "decay_start": 0.0},
    },
    "KL": {"grpo": {"prompts_per_iteration": 2, "group_size": 4, "updates_per_iteration": 1, "kl_weight": 0.1}},
    "own noise, CPS": {"sampling": {"num_steps": 8, "shared_noise": False, "shared_prefix": False, "kernel": "cps"}},
    "all steps, a fraction trained, guarded": {
        "window": {"size": 7, "strategy": "frozen", "trained_fraction": 0.6},
        "sampling": {"num_steps": 8, "shared_prefix": False, "kernel": "dance_sde", "eta": 0.3},
        "grpo": {"prompts_per_iteration": 2, "group_size": 4, "updates_per_iteration": 2, "ratio_normalisation": True},
    },
    "best and worst, trimmed, global": {
        "grpo": {
            "prompts_per_iteration": 2, "group_size": 6, "updates_per_iteration": 2, "best_and_worst": 2, "trim": 0.2,
            "advantage_std": "global",
        },
    },
    "KL, full": {
        "tuning": {"method": "full"}, "optimiser": {"learning_rate": 1e-4},
        "grpo": {"prompts_per_iteration": 2, "group_size": 4, "updates_per_iteration": 2, "kl_weight": 0.1},
    },
    "NFT": {
        "method": "nft", "sampling": {"num_steps": 8, "shared_noise": False, "shared_prefix": False},
        "nft": {"timesteps_per_image": 3, "sampler_decay": 0.5}, "flash": {"enabled": True},
    },
    "random window, model grid, guidance": {
        "window": {"size": 2, "strategy": "random"},
        "sampling": {"num_steps": 8, "shift": "model", "guidance_scale": 2.0},
    },
}


def variant(settings: RunSettings, changes: dict[str, Any]) -> RunSettings:
    return RunSettings.model_validate(settings.model_dump() | changes)


def without_clock(events: list[Event]) -> list[dict[str, Any]]:
    """Events as data, without what a clock says."""
    timed = {"time", "seconds", "eta_seconds", "num_bytes"}
    return [event.model_dump(exclude=timed) for event in events if not isinstance(event, Started | Message)]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_resumed_run_equals_the_straight_one(
    tiny_settings: RunSettings, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = variant(tiny_settings, changes)
    straight: list[Event] = []
    train(settings, tmp_path / "straight", straight.append)

    first: list[Event] = []
    stopped = train(
        settings, tmp_path / "halves", first.append,
        should_stop=lambda: any(isinstance(event, IterationDone) and event.step == 2 for event in first),
    )  # fmt: skip
    assert (stopped.outcome, stopped.step) == ("stopped", 2)
    rest: list[Event] = []
    checkpoint = load_checkpoint(tmp_path / "halves" / "checkpoints" / "step-000002")
    train(settings, tmp_path / "halves", rest.append, checkpoint=checkpoint)

    last = "checkpoints/step-000004"
    ours, theirs = (load_checkpoint(tmp_path / name / last).tensors for name in ("halves", "straight"))
    assert ours.keys() == theirs.keys()
    for file, tensors in theirs.items():
        assert all(torch.equal(ours[file][key], tensor) for key, tensor in tensors.items()), file
    past_two = [event for event in straight if (event.step or 0) > 2]
    assert without_clock(rest) == without_clock(past_two)
    images = sorted((tmp_path / "straight" / "samples" / "step-000004").iterdir())
    assert images
    assert all(
        image.read_bytes() == (tmp_path / "halves" / image.relative_to(tmp_path / "straight")).read_bytes()
        for image in images
    )


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_first_update_is_on_policy(tiny_settings: RunSettings, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = variant(tiny_settings, changes)
    if settings.method == "nft":  # its sampler lags behind the policy by design, unless told not to
        settings = variant(settings, {"nft": {"timesteps_per_image": 3, "sampler_decay": 0.0}})
    # Batches other than the rollout's: the training path must not depend on how images are batched.
    settings = variant(settings, {"compute": {"device": "cpu", "micro_batch": 3, "num_threads": 1}})
    events: list[Event] = []
    train(settings, tmp_path, events.append)
    drifts = [event.ratio_drift for event in events if isinstance(event, IterationDone)]
    assert len(drifts) == 4
    assert max(drifts) <= 1e-6


def test_a_stop_saves_what_is_not_saved_yet_and_nothing_twice(tiny_settings: RunSettings, tmp_path: Path) -> None:
    for every in (1, 4):
        settings, events = variant(tiny_settings, {"checkpoints": {"every": every}}), list[Event]()
        train(
            settings, tmp_path / str(every), events.append,
            should_stop=lambda events=events: any(isinstance(event, IterationDone) for event in events),
        )  # fmt: skip
        assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1]
        rest: list[Event] = []
        checkpoint = load_checkpoint(tmp_path / str(every) / "checkpoints" / "step-000001")
        train(settings, tmp_path / str(every), rest.append, checkpoint=checkpoint, should_stop=lambda: True)
        assert [type(event) for event in rest if not isinstance(event, Message)] == [Started, Finished]


def test_events_tell_the_run(tiny_settings: RunSettings, tmp_path: Path) -> None:
    events: list[Event] = []
    train(tiny_settings, tmp_path, events.append)
    assert [type(event).__name__ for event in events] == [
        "Started", "Message", "Message", "SamplesDrawn",
        "IterationDone", "IterationDone", "SamplesDrawn", "CheckpointSaved",
        "IterationDone", "IterationDone", "SamplesDrawn", "CheckpointSaved", "Finished",
    ]  # fmt: skip
    iteration = next(event for event in events if isinstance(event, IterationDone))
    # Window at 0: two SDE steps and six ODE steps for 2 prompts of 4 images, all 8 of which are trained on.
    assert (iteration.num_forwards, iteration.num_trained_steps) == (64, 16)
    assert iteration.rewards.keys() == iteration.spreads.keys() == {"vividness", "incompressibility"}
    assert all(spread > 0 for spread in iteration.spreads.values())
    samples = [event for event in events if isinstance(event, SamplesDrawn)]
    assert [event.step for event in samples] == [0, 2, 4]
    assert len({event.images[0].seed for event in samples}) == 1, "the same seed down a column"
    assert all((tmp_path / image.path).is_file() for event in samples for image in event.images)
    checkpoint = next(event for event in events if isinstance(event, CheckpointSaved))
    assert checkpoint.num_bytes == sum(f.stat().st_size for f in (tmp_path / checkpoint.path).iterdir())


def test_scores_are_told_by_label(tiny_settings: RunSettings, tmp_path: Path) -> None:
    rewards = [{"name": "vividness"}, {"name": "vividness", "label": "a gate", "weight": 0.0, "gate": 0.2}]
    events: list[Event] = []
    train(variant(tiny_settings, {"rewards": rewards, "iterations": 1}), tmp_path, events.append)
    told = [event for event in events if isinstance(event, IterationDone | SamplesDrawn)]
    assert all(event.rewards.keys() == {"vividness", "a gate"} for event in told)
    assert len(told) == 3


def test_training_moves_the_reward_it_is_given(tiny_settings: RunSettings, tmp_path: Path) -> None:
    changes = {
        "iterations": 40, "rewards": [{"name": "vividness"}], "optimiser": {"learning_rate": 1e-2},
        "evaluation": {"every": 40, "num_prompts": 2, "num_steps": 8}, "checkpoints": {"every": 40},
    }  # fmt: skip
    events: list[Event] = []
    train(variant(tiny_settings, changes), tmp_path, events.append)
    first, last = [event.rewards["vividness"] for event in events if isinstance(event, SamplesDrawn)]
    assert last > 1.02 * first


def test_images_without_an_advantage_are_not_trained_on(tiny_settings: RunSettings, tmp_path: Path) -> None:
    run = prepare(tiny_settings, tmp_path, lambda _: None, None)
    batch = sample_and_score(run)
    batch.advantages[:] = 0.0
    before = run.trainable.state()
    stats = update(run, batch)
    assert stats.num_trained == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in run.trainable.state().items())


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(tiny_settings: RunSettings, tmp_path: Path) -> None:
    run = prepare(tiny_settings, tmp_path, lambda _: None, None)
    batch = sample_and_score(run)
    batch.rollout.log_probs[:] = float("nan")
    with pytest.raises(ValueError, match="smaller optimiser"):
        update(run, batch)


def test_stopping_before_the_first_iteration_saves_nothing(tiny_settings: RunSettings, tmp_path: Path) -> None:
    finished = train(tiny_settings, tmp_path, lambda _: None, should_stop=lambda: True)
    assert finished == Finished(time=finished.time, step=0, outcome="stopped")
    assert not (tmp_path / "checkpoints").exists()
