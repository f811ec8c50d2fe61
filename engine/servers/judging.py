"""What a vision-language judge is asked of an image over chat completions, and what its answer is worth, from 0 to 1.

The style `unified_reward` is the point score of Wang et al., "Unified Reward Model for Multimodal Understanding and
Generation", arXiv 2503.05236: its words are those that the published models were trained with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.servers.connection import Connection, ServerError
from engine.servers.images import encode
from engine.servers.verdicts import Answer
from engine.settings import JudgeSettings

UNIFIED_REWARD = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the provided "
    "caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in the "
    "caption.\n2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\nBased on the above criteria, assign a score from 1 "
    "to 5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [{prompt}]"
)
USUAL_RUBRIC = "How faithfully does the image show all that the prompt asks for, and how beautiful is it?"
USUAL_QUESTION = 'Does this image show "{prompt}"?'

_FINAL_SCORE = re.compile(r"Final Score:\s*((?>[-+]?[0-9]+(?:\.[0-9]+)?))(?!…)")


def judge(connection: Connection, settings: JudgeSettings, image: NDArray[np.uint8], prompt: str) -> float:
    """The verdict, from 0 to 1, on a uint8 image (H, W, 3). Raises ServerError."""
    ask = partial(_ask, connection, settings, f"data:image/png;base64,{encode(image)}")
    if settings.style == "question":
        questions = settings.questions or (USUAL_QUESTION,)
        return sum(_yes(connection, ask, question.replace("{prompt}", prompt)) for question in questions) / len(
            questions
        )
    if settings.style == "unified_reward":
        answer = ask(UNIFIED_REWARD.replace("{prompt}", prompt))
        found = _FINAL_SCORE.findall(answer.text)
        return _scaled(answer, float(found[-1]) if found else math.nan, 1.0, 5.0, connection)
    answer = ask(score_question(settings, prompt))
    return _scaled(answer, answer.number(settings.highest), settings.lowest, settings.highest, connection)


def score_question(settings: JudgeSettings, prompt: str) -> str:
    """What is asked in the style `score`."""
    return (
        f"This image was made for the prompt: {prompt}\n\n{settings.rubric or USUAL_RUBRIC}\n\n"
        f"Answer with one number from {settings.lowest:g} (worst) to {settings.highest:g} (best), and nothing else."
    )


def _scaled(answer: Answer, value: float, lowest: float, highest: float, connection: Connection) -> float:
    """A number as a share of the way from lowest to highest. Raises ServerError for one that is not between."""
    if not lowest <= value <= highest:
        raise _no_verdict(answer, f"no number from {lowest:g} to {highest:g}", connection)
    return (value - lowest) / (highest - lowest)


def _yes(connection: Connection, ask: Callable[..., Answer], question: str) -> float:
    """The probability of yes. Raises ServerError for another answer than yes or no."""
    answer = ask(f"{question} Answer with yes or no, and nothing else.", logprobs=True, top_logprobs=20)
    value = answer.yes()
    if math.isnan(value):
        raise _no_verdict(answer, "neither yes nor no", connection)
    return value


def _no_verdict(answer: Answer, what: str, connection: Connection) -> ServerError:
    if answer.was_cut:
        return ServerError(
            f"the judge had used up its tokens before it answered, and gave {what}; raise judge.max_tokens, or have it "
            "think less"
        )
    return ServerError(f"the judge gave {what}, but “{connection.without_key(answer.said)}”")


def _ask(connection: Connection, settings: JudgeSettings, picture: str, question: str, **options: Any) -> Answer:
    """The first choice of a chat completion. Raises ServerError if the server's answer has none."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": settings.max_tokens,
        **options,
    }  # fmt: skip
    if connection.settings.model:
        request["model"] = connection.settings.model
    reply = connection.ask(request, "/chat/completions")
    choices: Sequence[Any] | None = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerError(f"the server {connection.origin} answered no chat completion")
    return Answer.of(choices[0])
