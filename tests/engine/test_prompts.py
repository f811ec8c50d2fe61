"""Which prompts a run sees, and in what order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from engine.prompts import load_prompts, prompts_of_iteration
from engine.settings import EvaluationSettings, PromptSettings, RunSettings


def test_builtin_prompts_keep_the_held_out_ones_apart() -> None:
    prompts = load_prompts(RunSettings(evaluation=EvaluationSettings(num_prompts=96)))
    assert len(prompts.held_out) == 96
    assert not set(prompts.training) & set(prompts.held_out)


def test_the_last_fifth_of_a_file_is_held_out(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("\n".join(f"prompt {i}" for i in range(20)))
    prompts = load_prompts(RunSettings(prompts=PromptSettings(file=str(file))))
    assert prompts.training == tuple(f"prompt {i}" for i in range(16))
    assert prompts.held_out == tuple(f"prompt {i}" for i in range(16, 20))
    assert "4 of 20 prompts are held out" in prompts.notes[0]


def test_held_out_prompts_of_ones_own_leave_the_file_whole(tmp_path: Path) -> None:
    training, held_out = tmp_path / "p.txt", tmp_path / "h.txt"
    training.write_text("a\nb\nc")
    held_out.write_text("d\ne")
    prompts = load_prompts(RunSettings(prompts=PromptSettings(file=str(training), evaluation_file=str(held_out))))
    assert (prompts.training, prompts.held_out, prompts.notes) == (("a", "b", "c"), ("d", "e"), ())


def test_a_single_prompt_is_trained_on_and_shown_with_a_note(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("only one")
    prompts = load_prompts(RunSettings(prompts=PromptSettings(file=str(file))))
    assert prompts.training == prompts.held_out == ("only one",)
    assert "only one prompt" in prompts.notes[0]


@pytest.mark.parametrize("name", ["nowhere.txt", "empty.txt"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=name):
        load_prompts(RunSettings(prompts=PromptSettings(file=str(tmp_path / name))))


def test_every_prompt_comes_once_before_any_comes_again() -> None:
    training = tuple("abcdefg")
    drawn = [p for iteration in range(14) for p in prompts_of_iteration(training, iteration, 3, seed=5)]
    assert all(Counter(drawn[i : i + 7]) == Counter(training) for i in range(0, 42, 7))
    assert drawn[:7] != drawn[7:14]
    assert drawn[9:12] == prompts_of_iteration(training, 3, 3, seed=5), "a function of the iteration alone"
