"""Fields drawn from RunSettings: bounds, help and round trips."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from app.field_shapes import describe
from app.forms import MAIN_SETTINGS, MainSetting, estimate, memory, value_at, with_values
from engine.presets import PRESETS
from engine.settings import KernelName, RunSettings
from engine.settings_text import SettingsError, parse_settings


@pytest.mark.parametrize("setting", MAIN_SETTINGS, ids=lambda setting: setting.path)
def test_main_settings_have_bounds_and_help(setting: MainSetting) -> None:
    shape = describe(setting.path)
    assert shape.help.endswith(".")
    assert shape.minimum is not None
    assert shape.minimum <= value_at(RunSettings(), setting.path)


def test_shapes() -> None:
    assert describe("sampling.kernel").options == get_args(KernelName)
    assert describe("flash.enabled").kind == "switch"
    assert describe("window.last").kind == "text"
    assert describe("sampling.shift").kind == "text"
    sides = describe("grpo.group_size")
    assert (sides.kind, sides.minimum, sides.maximum) == ("integer", 2, None)
    # An integer below 2**31 is at most 2**31 - 1; a float's open end is left to validation.
    assert describe("seed").maximum == 2**31 - 1
    assert describe("grpo.clip_range").maximum == 1.0


def test_unknown_path() -> None:
    with pytest.raises(KeyError):
        describe("grpo.sise")


@pytest.mark.parametrize("name", PRESETS)
def test_unchanged_form_gives_the_preset_back(name: str) -> None:
    """Widgets hold the preset's values, so launching without a change must run the preset itself."""
    start = PRESETS[name].make()
    values = {setting.path: value_at(start, setting.path) for setting in MAIN_SETTINGS}
    assert parse_settings(with_values(start, values)) == start


def test_changed_value_lands_in_its_place() -> None:
    changed = parse_settings(with_values(RunSettings(), {"grpo.group_size": 6, "iterations": 7}))
    assert (changed.grpo.group_size, changed.iterations) == (6, 7)
    assert RunSettings().grpo.group_size != 6


def test_mistakes_are_sentences() -> None:
    with pytest.raises(SettingsError, match="last of the 4 sampling steps"):
        parse_settings(with_values(RunSettings(), {"sampling.num_steps": 4}))


def test_memory_is_told_of_the_built_in_model_alone() -> None:
    """No folder is read because a form's text names it."""
    lora, full = RunSettings(), parse_settings(with_values(RunSettings(), {"tuning.method": "full"}))
    assert re.match(r"About \d+ MiB of GPU memory", memory(lora))
    assert memory(full) != memory(lora)
    for model in ({"folder": "/nowhere"}, {"hub_id": "owner/name"}, {"name": "flux"}):
        assert memory(RunSettings.model_validate({"model": model})) == ""


def test_estimate_counts_images() -> None:
    settings = parse_settings(with_values(RunSettings(), {"iterations": 20, "evaluation.every": 10}))
    text = estimate(settings)
    assert "48 images an iteration (4 prompts × 12), 960 in all" in text
    # MixGRPO's mean over its positions: 4 prompts × (9.5 shared + 15.5 × 12) forwards, 4 steps of 48 images.
    assert "782 transformer forwards and 192 trained steps an iteration" in text
    # Steps 0, 10 and 20, of 16 prompts each.
    assert "48 held-out images over 3 samplings" in text


@pytest.mark.parametrize(("device", "seconds"), [("cpu", "13.6"), ("cuda", "0.1")])
def test_estimate_knows_that_models_score_faster_on_a_gpu(device: str, seconds: str) -> None:
    settings = parse_settings({
        "rewards": [{"name": "hpsv2", "weights": "hps"}], "compute": {"device": device},
        "grpo": {"prompts_per_iteration": 1, "group_size": 4},
    })  # fmt: skip
    assert f"scoring about {seconds} s an iteration" in estimate(settings)
