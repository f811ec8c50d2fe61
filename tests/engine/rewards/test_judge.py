"""A vision-language judge on loopback: what it is asked, how strictly its answers are read, and when it fails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from engine.rewards import ScoredBatch, make_rewards, score_all
from engine.servers.allowed import KEYS_VARIABLE, SERVERS_VARIABLE
from engine.servers.check import check_server
from engine.settings import RewardSettings
from tests.loopback_server import Answer, Loopback, Stall, origin_of, serve

CANARY = "sk-canary-7f3a"
IMAGES = np.array([[[[250, 0, 0]]], [[[10, 0, 0]]]], dtype=np.uint8).repeat(8, 1).repeat(8, 2)
PROMPTS = ["a red star", "nothing {prompt}"]


def says(text: Any, *first_words: tuple[str, float]) -> dict[str, Any]:
    """A chat completion, with the probabilities of its first word if given."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    if first_words:
        top = [{"token": token, "logprob": math.log(share)} for token, share in first_words]
        choice["logprobs"] = {"content": [{"token": first_words[0][0], "top_logprobs": top}]}
    return {"choices": [choice]}


def reward_at(loopback: Loopback, **judge: Any) -> RewardSettings:
    server = loopback.settings(timeout=0.3, model="seer").model_dump()
    return RewardSettings.model_validate({"name": "judge", "server": server, "judge": judge})


def judged(answer: Answer, monkeypatch: pytest.MonkeyPatch, **judge: Any) -> tuple[ScoredBatch, list[dict[str, Any]]]:
    """The verdicts on both images, and what was asked about each, in order."""
    with serve(answer) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        result = score_all(make_rewards([reward_at(loopback, **judge)], torch.device("cpu")), IMAGES, PROMPTS)
        assert {path for path, _, _ in loopback.asked} == {"/score/chat/completions"}
        return result, sorted((data for _, _, data in loopback.asked), key=lambda data: PROMPTS[1] in question(data))


def question(asked: dict[str, Any]) -> str:
    return asked["messages"][0]["content"][1]["text"]


def shows_red(asked: dict[str, Any]) -> bool:
    return "a red star" in question(asked)


def test_a_score_is_asked_for_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = judged(lambda asked: says("7.5" if shows_red(asked) else " 2\n"), monkeypatch,
                           rubric="How red?", lowest=1, highest=11)  # fmt: skip
    assert result.values["judge"] == pytest.approx([0.65, 0.1])
    assert (asked[0]["model"], asked[0]["temperature"]) == ("seer", 0)
    assert asked[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    for part in ("a red star", "How red?", "from 1 (worst) to 11 (best)"):
        assert part in question(asked[0])


@pytest.mark.parametrize("said", [
    "11", "-1", "8/100", "seven", "", None, ["7"], "7 or 8", "nan", "inf", "1e1", "Score: 7 or 8", "Score: 11", "٧",
    "7\n7", "Score: 8/100", "of 10 points, 3 or 4",
])  # fmt: skip
def test_only_a_number_within_the_bounds_is_a_score(monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    result, _ = judged(lambda asked: says("5" if shows_red(asked) else said), monkeypatch)
    assert np.isnan(result.values["judge"]).tolist() == [False, True]
    assert "1 of 2 images (the judge gave no number from 0 to 10, but “" in result.messages[0]


def test_the_probability_of_yes_counts_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    yes = says("Yes", ("Yes", 0.5), (" yes", 0.1), ("No", 0.2), ("Maybe", 0.2))
    no = says("no", ("no", 0.9), ("perhaps", 0.1))
    result, asked = judged(lambda asked: yes if shows_red(asked) else no, monkeypatch, style="question")
    assert result.values["judge"] == pytest.approx([0.75, 0.0])
    assert (asked[0]["logprobs"], asked[0]["top_logprobs"]) == (True, 20)
    assert question(asked[0]).startswith('Does this image show "a red star"? Answer with yes or no')
    assert '"nothing {prompt}"' in question(asked[1])


@pytest.mark.parametrize(("said", "score"), [("Yes.", 1.0), ("no", 0.0), (" YES!\n", 1.0), ("maybe", math.nan),
                                             ("Yes and no", math.nan), ("", math.nan)])  # fmt: skip
@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": [{"top_logprobs": [{"token": "?"}]}]}])
def test_else_the_word_counts(monkeypatch: pytest.MonkeyPatch, said: str, score: float, logprobs: Any) -> None:
    answer = says(said)
    answer["choices"][0]["logprobs"] = logprobs
    result, _ = judged(lambda asked: answer, monkeypatch, style="question")
    assert result.values["judge"] == pytest.approx([score, score], nan_ok=True)


def test_questions_are_asked_one_by_one_and_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = judged(lambda asked: says("yes" if "sharp" in question(asked) else "no"), monkeypatch,
                           style="question", questions=["Is it sharp?", "Is there {prompt}?"])  # fmt: skip
    assert result.values["judge"] == pytest.approx([0.5, 0.5])
    assert len(asked) == 4
    assert any(question(data).startswith("Is there a red star?") for data in asked)


@pytest.mark.parametrize(("said", "score"), [
    ("The star is red.\nFinal Score: 4.5", 0.875), ("Final Score: **3**", 0.5), ("Final Score:1", 0.0),
    ("Final Score: 2. No: Final Score: 5", 1.0), ("Score: 4", math.nan), ("Final Score: 45", math.nan),
    ("Final Score: 0", math.nan),
])  # fmt: skip
def test_the_point_score_of_unified_reward(monkeypatch: pytest.MonkeyPatch, said: str, score: float) -> None:
    result, asked = judged(lambda asked: says(said), monkeypatch, style="unified_reward")
    assert result.values["judge"] == pytest.approx([score, score], nan_ok=True)
    assert "assign a score from 1 to 5 after 'Final Score:'." in question(asked[0])
    assert question(asked[0]).endswith("\nText Caption: [a red star]")


@pytest.mark.parametrize(("answer", "reason"), [
    (lambda asked: Stall(drips=True), "did not answer within 0.3 s"),
    (lambda asked: (500, {}, b"busy"), "status 500: busy"),
    (lambda asked: {"choices": []}, "no chat completion"),
    (lambda asked: {"error": "no such model"}, "no chat completion"),
    (lambda asked: [], "no chat completion"),
    (lambda asked: {"choices": [{"message": None}]}, "but “”"),
])  # fmt: skip
@pytest.mark.parametrize("style", ["score", "question", "unified_reward"])
def test_a_judge_that_is_slow_or_wrong(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str, style: str
) -> None:
    def sometimes(asked: dict[str, Any]) -> Any:
        return {"score": says("5"), "question": says("yes"), "unified_reward": says("Final Score: 5")}[style] \
            if shows_red(asked) else answer(asked)  # fmt: skip

    result, _ = judged(sometimes, monkeypatch, style=style)
    assert np.isnan(result.values["judge"]).tolist() == [False, True]
    assert "could not score 1 of 2 images" in result.messages[0]
    assert reason in result.messages[0]


def test_a_judge_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: says("5")) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        rewards = make_rewards([reward_at(loopback)], torch.device("cpu"))
    result = score_all(rewards, IMAGES, PROMPTS)
    assert np.isnan(result.values["judge"]).all()
    assert "no server answers at" in result.messages[0]


@pytest.mark.parametrize("answer", [
    lambda asked: says(f"your key is {CANARY}"), lambda asked: (401, {}, CANARY.encode()),
    lambda asked: (500, {"X-Key": CANARY}, CANARY.encode()), lambda asked: f"<{CANARY}>".encode(),
])  # fmt: skip
def test_a_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    with serve(answer) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        monkeypatch.setenv(KEYS_VARIABLE, f"{origin_of(loopback)}={CANARY}")
        settings = reward_at(loopback)
        rewards = make_rewards([settings], torch.device("cpu"))
        result = score_all(rewards, IMAGES, PROMPTS)
        with pytest.raises(ValueError, match="The reward judge cannot be used: ") as refusal:
            check_server(settings)
        assert {headers["Authorization"] for _, headers, _ in loopback.asked} == {f"Bearer {CANARY}"}
    assert "could not score 2 of 2 images" in result.messages[0]
    assert CANARY not in f"{result} {refusal.value!r} {refusal.value.__cause__!r} {rewards} {settings}"


def thinks(content: str | None, finish: str, thoughts: str = "Hm. It is red.") -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "reasoning_content": thoughts}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def test_a_judge_that_thinks_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [says("<think>3 of 10?</think>\nScore: 8/10"), thinks("**6**", "stop")]
    result, asked = judged(lambda asked: said[0 if shows_red(asked) else 1], monkeypatch)
    assert result.values["judge"] == pytest.approx([0.8, 0.6])
    assert asked[0]["max_tokens"] == 2048


@pytest.mark.parametrize("style", ["score", "question", "unified_reward"])
@pytest.mark.parametrize("capped", [
    thinks(None, "length"), thinks("", "length"), thinks("<think>Hm. It is", "length", ""), thinks("It is", "length"),
])  # fmt: skip
def test_a_judge_whose_tokens_end_before_its_answer(
    monkeypatch: pytest.MonkeyPatch, capped: dict[str, Any], style: str
) -> None:
    result, asked = judged(lambda asked: capped, monkeypatch, style=style, max_tokens=77)
    assert np.isnan(result.values["judge"]).all()
    assert "had used up its tokens before it answered" in result.messages[0]
    assert "raise judge.max_tokens" in result.messages[0]
    assert asked[0]["max_tokens"] == 77


def test_a_judge_that_answers_passes_the_check_with_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: says("5")) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        check_server(reward_at(loopback))
        assert len(loopback.asked) == 1
