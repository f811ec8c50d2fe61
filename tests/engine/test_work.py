"""Counted work equals the formulas, in the published recipes and in runs of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.events import IterationDone
from engine.presets import PRESETS
from engine.run import prepare
from engine.settings import RunSettings
from engine.train import sample_and_score, train, update
from engine.work import mean_work, num_trained_steps, work_at

ONE_PROMPT = {"prompts_per_iteration": 1, "updates_per_iteration": 1}


def _preset(name: str, **grpo: Any) -> RunSettings:
    data = PRESETS[name].make().model_dump()
    return RunSettings.model_validate(data | {"grpo": data["grpo"] | ONE_PROMPT | grpo})


@pytest.mark.parametrize(
    ("name", "rollout", "trained"),
    [
        ("dance_grpo", 300, 168),  # 14 of 24 steps of 12 images
        ("flow_grpo", 300, 288),
        ("mixgrpo", 195.5, 48),  # mean prefix 9.5, once; 15.5 steps for each of 12
        ("mixgrpo_flash_frozen", (4 + 5) * 12, 48),  # ⌈0.2·21⌉ = 5
    ],
)
def test_the_published_recipes(name: str, rollout: float, trained: float) -> None:
    """T = 25, G = 12: the table of what each recipe costs."""
    work = mean_work(_preset(name))
    assert (work.rollout, work.trained_steps) == (pytest.approx(rollout), pytest.approx(trained))


def test_what_the_shared_prefix_saves() -> None:
    settings = _preset("mixgrpo")
    apart = RunSettings.model_validate(
        settings.model_dump() | {"sampling": settings.sampling.model_dump() | {"shared_prefix": False}}
    )
    assert mean_work(apart).rollout == pytest.approx(300)
    assert {work_at(apart, start).rollout for start in range(20)} == {300}


def test_the_ratios_to_dance_grpo() -> None:
    """LoRA without checkpointing costs 2 F a trained step, so the table's 4 F ratios shift; the order stays."""
    cost = {name: mean_work(_preset(name)).cost for name in PRESETS if not name.startswith("builtin")}
    assert cost["dance_grpo"] == 300 + 2 * 168
    assert cost["turbo"] < cost["mixgrpo_flash_frozen"] < cost["mixgrpo_flash"] < cost["mixgrpo"] < cost["dance_grpo"]
    assert cost["dance_grpo"] < cost["flow_grpo"]


def test_fractions_of_a_window_round_down() -> None:
    assert num_trained_steps(_preset("dance_grpo")) == 14
    tiny = RunSettings.model_validate({"window": {"trained_fraction": 0.1}})
    assert num_trained_steps(tiny) == 1


COUNTED: dict[str, dict[str, Any]] = {
    "mixgrpo": {},
    "no shared prefix, flash": {
        "sampling": {"num_steps": 8, "shared_prefix": False}, "flash": {"enabled": True, "ratio": 0.4},
    },
    "guidance": {"sampling": {"num_steps": 8, "guidance_scale": 3.0}},
    "a fraction of all steps": {"window": {"size": 7, "strategy": "frozen", "trained_fraction": 0.6}},
    "best and worst": {
        "grpo": {"prompts_per_iteration": 2, "group_size": 5, "updates_per_iteration": 2, "best_and_worst": 1},
    },
    "KL": {"grpo": {"prompts_per_iteration": 2, "group_size": 4, "updates_per_iteration": 2, "kl_weight": 0.1}},
    "NFT": {
        "method": "nft", "nft": {"timesteps_per_image": 3}, "flash": {"enabled": True},
        "sampling": {"num_steps": 8, "shared_noise": False, "shared_prefix": False},
    },
    "NFT on the best and worst": {
        "method": "nft", "nft": {"timesteps_per_image": 3},
        "grpo": {"prompts_per_iteration": 2, "group_size": 5, "updates_per_iteration": 2, "best_and_worst": 1},
        "sampling": {"num_steps": 8, "shared_noise": False, "shared_prefix": False},
    },
    "NFT without the base": {
        "method": "nft", "nft": {"timesteps_per_image": 2, "base_weight": 0.0},
        "sampling": {"num_steps": 8, "shared_noise": False, "shared_prefix": False, "guidance_scale": 2.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", COUNTED.values(), ids=COUNTED.keys())
def test_what_a_run_counts_is_what_the_formulas_say(
    tiny_settings: RunSettings, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = RunSettings.model_validate(tiny_settings.model_dump() | {"iterations": 2} | changes)
    events: list[Any] = []
    train(settings, tmp_path, events.append)
    iterations = [event for event in events if isinstance(event, IterationDone)]
    assert len(iterations) == 2
    for event in iterations:
        expected = work_at(settings, event.window_start)
        assert event.num_forwards == expected.rollout + expected.reference
        assert event.num_trained_steps == expected.trained_steps


def test_the_mean_is_over_the_windows_positions(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """Seven positions of a window of one step, an iteration each."""
    settings = RunSettings.model_validate(
        tiny_settings.model_dump() | {"window": {"size": 1, "iterations_per_position": 1}}
    )
    run = prepare(settings, tmp_path, lambda _: None, None)
    forwards = []
    for step in range(6):
        run.step = step
        run.counter.take()
        batch = sample_and_score(run)
        forwards.append(run.counter.take())
        update(run, batch)
    assert sum(forwards) / 6 == pytest.approx(mean_work(settings).rollout)
