"""Every preset, on a tiny model: on policy at first, and resumable to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.artifacts.checkpoint import load_checkpoint
from engine.events import Event, IterationDone, Message, Started
from engine.presets import PRESETS
from engine.settings import RunSettings
from engine.settings_text import from_yaml
from engine.train import train

NOT_OF_THE_METHOD = ("seed", "model", "prompts", "rewards", "compute")


def tiny(name: str, settings: RunSettings, **changes: Any) -> RunSettings:
    """The preset's method on the tiny model and its prompts: three iterations, one prompt each."""
    preset, given = PRESETS[name].make().model_dump(), settings.model_dump()
    preset |= {part: given[part] for part in NOT_OF_THE_METHOD}
    preset["grpo"] |= {"prompts_per_iteration": 1, "group_size": 6}
    preset["tuning"] |= {"rank": 4}
    preset["window"] |= {"iterations_per_position": 1}
    preset["evaluation"] |= {"every": 3, "num_prompts": 1, "num_steps": 2}
    preset |= {"checkpoints": {"every": 1}, "iterations": 3}
    return RunSettings.model_validate(preset | changes)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_yaml_that_reads_back(name: str) -> None:
    settings = PRESETS[name].make()
    assert from_yaml(settings.to_yaml()) == settings


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_update_is_on_policy(name: str, tiny_settings: RunSettings, tmp_path: Path) -> None:
    """ρ = 1 within 1e-6 in float32, though training batches images otherwise than the rollout."""
    compute = {"device": "cpu", "micro_batch": 7, "num_threads": 1}
    settings = tiny(name, tiny_settings, compute=compute)
    if settings.method == "nft":  # its sampler lags behind the policy by design, unless told not to
        settings = settings.model_copy(update={"nft": settings.nft.model_copy(update={"sampler_decay": 0.0})})
    events: list[Event] = []
    train(settings, tmp_path, events.append)
    drifts = [event.ratio_drift for event in events if isinstance(event, IterationDone)]
    assert len(drifts) == 3
    assert max(drifts) <= 1e-6


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_resumed_twice_equals_the_straight_one(name: str, tiny_settings: RunSettings, tmp_path: Path) -> None:
    settings = tiny(name, tiny_settings)
    straight: list[Event] = []
    train(settings, tmp_path / "straight", straight.append)
    pieces: list[Event] = []
    for done in range(3):
        checkpoint = load_checkpoint(tmp_path / "pieces" / "checkpoints" / f"step-{done:06d}") if done else None
        first = len(pieces)
        train(
            settings, tmp_path / "pieces", pieces.append, checkpoint=checkpoint,
            should_stop=lambda first=first: any(isinstance(event, IterationDone) for event in pieces[first:]),
        )  # fmt: skip
    assert _told(pieces) == _told(straight)
    last = "checkpoints/step-000003"
    ours, theirs = (load_checkpoint(tmp_path / run / last).tensors for run in ("pieces", "straight"))
    assert ours.keys() == theirs.keys()
    for file, tensors in theirs.items():
        assert all(torch.equal(ours[file][key], tensor) for key, tensor in tensors.items()), file


def _told(events: list[Event]) -> list[dict[str, Any]]:
    """What a run says of its iterations and samples, without what a clock says."""
    timed = {"time", "seconds", "eta_seconds", "num_bytes"}
    kinds = {"iteration", "samples"}
    kept = [event for event in events if not isinstance(event, Started | Message)]
    return [event.model_dump(exclude=timed) for event in kept if event.kind in kinds]
