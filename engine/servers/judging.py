"""What a vision-language judge is asked of an image over chat completions, and what its answer is worth, from 0 to 1.

The style `unified_reward` is the point score of Wang et al., "Unified Reward Model for Multimodal Understanding and
Generation", arXiv 2503.05236: its words are those that the published models were trained with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.servers.connection import Connection, ServerError
from engine.servers.images import encode
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

_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
_FINAL_SCORE = re.compile(rf"Final Score:\s*\**\s*({_NUMBER})")


def judge(connection: Connection, settings: JudgeSettings, image: NDArray[np.uint8], prompt: str) -> float:
    """The verdict, from 0 to 1, on a uint8 image (H, W, 3). Raises ServerError."""
    picture = f"data:image/png;base64,{encode(image)}"
    if settings.style == "question":
        questions = settings.questions or (USUAL_QUESTION,)
        return sum(_yes(connection, picture, question.replace("{prompt}", prompt)) for question in questions) / len(
            questions
        )
    if settings.style == "unified_reward":
        said = _text(_choice(connection, picture, UNIFIED_REWARD.replace("{prompt}", prompt), max_tokens=512))
        found = _FINAL_SCORE.findall(said)
        return _scaled(connection, found[-1] if found else "", said, 1.0, 5.0)
    said = _text(_choice(connection, picture, score_question(settings, prompt), max_tokens=16)).strip()
    number = said.rstrip(".") if re.fullmatch(rf"{_NUMBER}\.?", said) else ""
    return _scaled(connection, number, said, settings.lowest, settings.highest)


def score_question(settings: JudgeSettings, prompt: str) -> str:
    """What is asked in the style `score`."""
    return (
        f"This image was made for the prompt: {prompt}\n\n{settings.rubric or USUAL_RUBRIC}\n\n"
        f"Answer with one number from {settings.lowest:g} (worst) to {settings.highest:g} (best), and nothing else."
    )


def _scaled(connection: Connection, number: str, said: str, lowest: float, highest: float) -> float:
    """A number as a share of the way from lowest to highest. Raises ServerError for anything else."""
    value = float(number) if number else math.nan
    if not lowest <= value <= highest:
        raise ServerError(
            f"the judge gave no number from {lowest:g} to {highest:g}, but “{connection.without_key(said)}”"
        )
    return (value - lowest) / (highest - lowest)


def _yes(connection: Connection, picture: str, question: str) -> float:
    """The probability of yes among yes and no, or 1 or 0 by the word. Raises ServerError for another word."""
    choice = _choice(
        connection, picture, f"{question} Answer with yes or no, and nothing else.",
        max_tokens=4, logprobs=True, top_logprobs=20,
    )  # fmt: skip
    shares = _shares(choice)
    if shares is not None:
        return shares[0] / (shares[0] + shares[1])
    said = _text(choice)
    word = re.sub(r"\W+$", "", said.strip()).lower()
    if word not in ("yes", "no"):
        raise ServerError(f"the judge answered neither yes nor no, but “{connection.without_key(said)}”")
    return float(word == "yes")


def _shares(choice: Mapping[str, Any]) -> tuple[float, float] | None:
    """The probabilities of yes and no as the answer's first word, every spelling added up; None if not given."""
    try:
        rows = choice["logprobs"]["content"][0]["top_logprobs"]
        given = [(str(row["token"]).strip().lower(), min(0.0, float(row["logprob"]))) for row in rows]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    yes, no = (sum(math.exp(logprob) for token, logprob in given if token == word) for word in ("yes", "no"))
    return (yes, no) if math.isfinite(yes + no) and yes + no > 0 else None


def _choice(connection: Connection, picture: str, question: str, **options: Any) -> Mapping[str, Any]:
    """The first choice of a chat completion. Raises ServerError if the answer has none."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    request: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "temperature": 0, **options}
    if connection.settings.model:
        request["model"] = connection.settings.model
    answer = connection.ask(request, "/chat/completions")
    choices: Sequence[Any] | None = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerError(f"the server {connection.origin} answered no chat completion")
    return choices[0]


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""
