"""How learning curves are read, and that every recipe compared is one the engine takes."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from engine.work import mean_work

ROWS = [
    {"seconds": 0.0, "vividness": 0.5},
    {"seconds": 10.0, "vividness": 0.7},
    {"seconds": 20.0, "vividness": 0.6},
    {"seconds": 40.0, "vividness": 1.0},
]


@pytest.fixture
def learning(benchmarks: None) -> ModuleType:
    return importlib.import_module("learning")


def test_between_evaluations_the_reward_lies_on_a_straight_line(learning: ModuleType) -> None:
    assert learning.at(ROWS, 5.0) == pytest.approx(0.6)
    assert learning.at(ROWS, 30.0) == pytest.approx(0.8)
    assert learning.at(ROWS, 99.0) == 1.0, "the last is kept"


def test_a_reward_is_reached_at_the_first_moment(learning: ModuleType) -> None:
    assert learning.seconds_to(ROWS, 0.65) == pytest.approx(7.5)
    assert learning.seconds_to(ROWS, 0.8) == pytest.approx(30.0)
    assert learning.seconds_to(ROWS, 1.1) is None


def test_the_share_of_the_baselines_time_is_of_the_whole_budget(learning: ModuleType) -> None:
    slow = [{"seconds": 0.0, "vividness": 0.5}, {"seconds": 40.0, "vividness": 0.7}]
    summary = learning.summarise(
        {"dance_grpo": [{"seed": 0, "curve": slow}], "turbo": [{"seed": 0, "curve": ROWS}]}, 40.0
    )
    assert summary["turbo"]["share_of_baseline_time"] == [0.25]
    assert summary["dance_grpo"]["share_of_baseline_time"] == [1.0]


def test_every_recipe_runs_on_ten_steps_with_its_own_share_of_them(learning: ModuleType) -> None:
    settings = {name: learning.recipe_settings(name, 0, 1e-3, 5) for name in learning.RECIPES}
    assert all(one.sampling.num_steps == 10 for one in settings.values())
    assert settings["flow_grpo"].window.size == settings["dance_grpo"].window.size == 9
    costs = {name: mean_work(one).cost for name, one in settings.items()}
    assert costs["turbo"] < costs["mixgrpo_flash"] < costs["mixgrpo"] < costs["dance_grpo"] < costs["flow_grpo"]
