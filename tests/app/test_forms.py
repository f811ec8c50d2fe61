"""Fields drawn from RunSettings: bounds, help and round trips."""

from __future__ import annotations

from typing import get_args

import pytest

from app.field_shapes import describe
from app.forms import MAIN_SETTINGS, MainSetting, value_at, with_values
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
