"""What a judge's answer is read as: strictly, after its thoughts, and as nothing where it may be half an answer."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine.servers.verdicts import Answer


def answer(content: Any, **choice: Any) -> Answer:
    return Answer.of({"message": {"content": content}} | choice)


@pytest.mark.parametrize(("said", "number"), [
    ("7.5", 7.5), (" 2\n", 2.0), ("8.", 8.0), ("8/10", 8.0), ("8 / 10.", 8.0), ("8 out of 10", 8.0), ("**8**", 8.0),
    ("Score: 8/10", 8.0), ("**Score:** 8/10\nIt is red.", 8.0), ("The star is red.\n\nFinal score: **6.5**", 6.5),
    ("The rating is 4, for it is blurred.", 4.0), ('{"score": 9}', 9.0), ("$\\boxed{3}$", 3.0),
    ("Score: 2. On second thought, score: 5.", 5.0),
    ("<think>9? No, Score: 3.</think>\n8", 8.0), ("9 is too much.\n</think>\n\nScore: 8/10", 8.0),
    ("<thinking>9</thinking>8", 8.0), ("◁think▷9◁/think▷8", 8.0), ("<think></think>8<think>9</think>7", 7.0),
    ("<think>Score: 9", math.nan), ("<think>Score: 9</think>", math.nan), ("8</think><think>9", math.nan),
    ("7 of 10 stars are red", math.nan), ("Score: 7 or 8", math.nan), ("Score: 7.x", math.nan),
    ("Score: 7e1", math.nan), ("8/5", math.nan), ("Score: 8 out of 100", math.nan), ("scores: 8", math.nan),
    ("underscore: 8", math.nan),
])  # fmt: skip
def test_numbers(said: str, number: float) -> None:
    assert answer(said).number(10.0) == pytest.approx(number, nan_ok=True)


@pytest.mark.parametrize(("said", "yes"), [
    ("Yes", 1.0), ("**No.**", 0.0), ("Yes, the star is red.", 1.0), ("No: it is blue, yes, blue.", 0.0),
    ("The star is blue, so the answer is no.", 0.0), ("Answer: yes", 1.0), ("Final answer: **Yes**", 1.0),
    ("<think>Yes? It is blue.</think>\nNo", 0.0), ("<think>Yes, yes,", math.nan), ("Yes and no", math.nan),
    ("The answer is yes and no.", math.nan), ("Not really", math.nan), ("yesterday", math.nan), ("", math.nan),
])  # fmt: skip
def test_yes_and_no(said: str, yes: float) -> None:
    assert answer(said).yes() == pytest.approx(yes, nan_ok=True)


def row(token: str, *top: tuple[str, float]) -> dict[str, Any]:
    return {"token": token, "top_logprobs": [{"token": word, "logprob": math.log(share)} for word, share in top]}


def test_probabilities_are_those_of_the_answer_and_not_of_a_thought() -> None:
    thoughts = [row("<think>", ("yes", 0.9)), row(" Yes", ("Yes", 0.9), ("No", 0.1)), row("</think>")]
    verdict = row("No", ("Yes", 0.25), ("No", 0.75))
    rows = {"content": [*thoughts, verdict, row("<|im_end|>")]}
    assert answer("<think> Yes</think>No", logprobs=rows).yes() == pytest.approx(0.25)
    apart = {"message": {"content": "No", "reasoning_content": "Yes"}, "logprobs": rows}
    assert Answer.of(apart).yes() == pytest.approx(0.25)
    # Of an answer of several words the place is not sure.
    assert answer("<think> Yes</think>No, it is not.", logprobs=rows).yes() == 0.0
    assert answer("Yes, or no", logprobs={"content": [row("Yes", ("yes", 0.6), ("no", 0.2))]}).yes() == pytest.approx(
        0.75
    )


@pytest.mark.parametrize("said", ["1", "Score: 1", "Score: 8/1", "The score is"])
def test_a_number_that_may_have_been_cut_is_none(said: str) -> None:
    assert math.isnan(answer(said, finish_reason="length").number(10.0))


def test_what_comes_before_the_cut_counts() -> None:
    cut = answer("Score: 8/10\nThe star", finish_reason="length")
    assert cut.number(10.0) == 8.0 and cut.was_cut
    assert answer("Yes, the st", finish_reason="length").yes() == 1.0
    assert math.isnan(answer("No", finish_reason="length").yes())


@pytest.mark.parametrize("message", [None, [], {}, {"content": None}, {"content": ["8"]}, {"reasoning": "8"}])
def test_no_answer_is_none(message: Any) -> None:
    found = Answer.of({"message": message, "logprobs": "none"})
    assert (found.said, found.text) == ("", "")
    assert math.isnan(found.number(10.0)) and math.isnan(found.yes())
