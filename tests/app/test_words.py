"""Figures said as people say them."""

from __future__ import annotations

from typing import get_args

import pytest

from app import words
from engine.memory_advice import CHANGES, fewer_at_once
from engine.settings import RewardName, RunSettings


def test_time_left_says_nothing_where_nothing_is_known() -> None:
    assert words.time_left(None) == ""
    assert words.time_left(float("nan")) == ""
    assert words.time_left(130) == "2 min left"
    assert words.time_left(0.3) == "almost done"


def test_gain() -> None:
    assert words.gain("vividness", 0.89, 1.344) == "0.89 → 1.34 (+51 %)"
    assert words.gain("vividness", 1.0, 0.9) == "1.00 → 0.90 (−10 %)"
    # Less negative is better: the share is of the size, so that its sign says which way it went.
    assert words.gain("compressibility", -4.0, -3.0) == "−4.00 → −3.00 (+25 %)"
    assert words.gain("composition", 0.0, 0.5) == "0.00 → 0.50"
    assert words.gain("composition", None, 0.5) == "0.50"
    assert words.gain("composition", None, None) == ""


@pytest.mark.parametrize("name", get_args(RewardName))
def test_rewards_have_titles(name: str) -> None:
    assert words.reward_title(name) != name
    assert words.digits_for(name) in (1, 2)


@pytest.mark.parametrize(
    ("error", "sign"),
    [("OSError: [Errno 28] No space left on device", "disk is full"), ("RuntimeError: CUDA out of memory", "memory"),
     ("The engine ended with exit code -9", "memory"), ("the loss is NaN at step 4", "learning rate"),
     ("", "without saying why")],
)
def test_known_causes(error: str, sign: str) -> None:
    assert sign in words.cause(error)


def test_unknown_cause_is_the_errors_own_last_line() -> None:
    assert words.cause("Traceback\n  somewhere\nValueError: the cat sat on it") == "ValueError: the cat sat on it"
    # "nan" in another word is no sign of a NaN.
    assert words.cause("The file banana.txt is gone.") == "The file banana.txt is gone."


def test_sizes_and_counts() -> None:
    assert words.size(840) == "840 bytes"
    assert words.size(3_412_000) == "3.41 MB"
    assert words.count(1, "prompt") == "1 prompt"
    assert words.count(2000, "prompt") == "2,000 prompts"


def test_ago() -> None:
    assert words.ago(100.0, now=104.0) == "just now"
    assert words.ago(100.0, now=400.0) == "5 min ago"
    assert words.ago(None) == ""


def test_every_job_state_has_a_look() -> None:
    for state in ("queued", "running", "done", "failed", "cancelled"):
        assert words.look(state).word
    assert words.look("running", cancel_requested=True).word == "Stopping"


@pytest.mark.parametrize(
    ("error", "full"),
    [("CUDA out of memory. Tried to allocate 2 GiB.", "gpu"),
     ("One image alone does not fit the memory of the device while training. Set …", "gpu"),
     ("The engine crashed: it was ended by SIGKILL; the machine may have run out of memory.", "machine"),
     ("OSError: Cannot allocate memory", "machine"), ("The prompts are gone.", None)],
)
def test_which_memory_was_full(error: str, full: str | None) -> None:
    assert words.full_memory(error) == full


def test_every_change_for_less_memory_has_words() -> None:
    settings = RunSettings()
    for change in (*CHANGES, *fewer_at_once(settings)):
        assert f"`{change.section}.{change.name}: " in words.changes([change])
