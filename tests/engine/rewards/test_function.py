"""A creator's own function: found by module or entry point, asked as promised, and forgiven its faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.rewards import ScoredBatch, make_rewards, score_all
from engine.settings import RewardSettings

MODULE = """
from PIL import Image

a_number = 3

def red(images, prompts):
    assert all(isinstance(image, Image.Image) for image in images) and len(images) == len(prompts)
    return [image.getpixel((0, 0))[0] + len(prompt) for image, prompt in zip(images, prompts)]

def fussy(images, prompts):
    return [None if prompt == "none" else float("nan") if prompt == "nan" else 1.0 for prompt in prompts]

def broken(images, prompts):
    if any(prompt == "bad" for prompt in prompts):
        raise KeyError("bad prompt")
    return [1.0] * len(images)

def short(images, prompts):
    return []

def odd(images, prompts):
    return ["much"] * len(images)
"""


@pytest.fixture(autouse=True)
def taste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules of a creator's, on the path; and a package with an entry point."""
    (tmp_path / "my_taste.py").write_text(MODULE)
    (tmp_path / "my_broken_taste.py").write_text("raise RuntimeError('no taste today')")
    package = tmp_path / "my_taste-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-taste\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[palate.rewards]\nredness = my_taste:red\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_taste", "my_broken_taste"):
        sys.modules.pop(name, None)


def scored(place: str, prompts: list[str]) -> ScoredBatch:
    rewards = make_rewards([RewardSettings(name="function", function=place)], torch.device("cpu"))
    images = np.arange(len(prompts), dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    return score_all(rewards, images, prompts)


@pytest.mark.parametrize("place", ["my_taste:red", "redness"])
def test_it_is_asked_about_every_image(place: str) -> None:
    assert scored(place, ["", "a", "bb"]).values["function"].tolist() == [0, 2, 4]


def test_what_it_cannot_score_is_left_out() -> None:
    result = scored("my_taste:fussy", ["yes", "none", "nan"])
    assert np.isfinite(result.values["function"]).tolist() == [True, False, False]
    assert "could not score 2 of 3 images" in result.messages[0]


def test_an_exception_costs_only_the_image_at_fault() -> None:
    result = scored("my_taste:broken", ["good", "bad", "good"])
    assert np.isfinite(result.values["function"]).tolist() == [True, False, True]
    assert "('bad prompt')" in result.messages[0]


@pytest.mark.parametrize("name", ["short", "odd"])
def test_answers_of_the_wrong_kind_are_no_scores(name: str) -> None:
    result = scored(f"my_taste:{name}", ["a", "b"])
    assert np.isnan(result.values["function"]).all()
    assert "could not score 2 of 2 images" in result.messages[0]


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("my_tasteless:red", "ModuleNotFoundError: No module named 'my_tasteless'"),
        ("my_taste:blue", "AttributeError"),
        ("my_broken_taste:red", "RuntimeError: no taste today"),
        ("blueness", r"no entry point blueness in the group palate.rewards \(redness\)"),
        ("my_taste:a_number", "is no function"),
    ],
)
def test_what_cannot_be_loaded_is_said(place: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        scored(place, ["a"])
