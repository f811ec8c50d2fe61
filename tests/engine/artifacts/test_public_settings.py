"""What an export tells of the machine that the run was made on: nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.settings import RewardSettings, RunSettings
from engine.settings.rewards import ServerSettings
from tests.engine.artifacts.families import family_source


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("/home/someone/models/hps", "hps"),
        ("../models/hps/", "hps"),
        ("./hps", "hps"),
        ("org/hps-v2", "org/hps-v2"),
        (None, None),
    ],
)
def test_a_rewards_folder_is_told_by_its_name(tmp_path: Path, weights: str | None, told: str | None) -> None:
    source = family_source("SD3Transformer2DModel", tmp_path)
    settings = RunSettings(rewards=(RewardSettings(name="hpsv2", weights=weights),))
    public = replace(source, settings=settings).public_settings()
    assert public.rewards[0].weights == told
    assert RunSettings.model_validate(public.model_dump()) == public


def test_a_rewards_server_is_not_told(tmp_path: Path) -> None:
    source = family_source("SD3Transformer2DModel", tmp_path)
    server = ServerSettings(url="http://gpu-7.home.lan:8000/v1", model="judge")
    reward = RewardSettings(name="hpsv2").model_copy(update={"server": server})
    public = replace(source, settings=RunSettings().model_copy(update={"rewards": (reward,)})).public_settings()
    told = public.rewards[0].server
    assert told is not None
    assert (told.url, told.model) == ("http://reward-server.invalid/v1", "judge")
    assert "gpu-7" not in public.to_yaml()
    assert ServerSettings.model_validate(told.model_dump()) == told
