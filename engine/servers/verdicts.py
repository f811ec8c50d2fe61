"""What a judge's chat completion says: a number, or yes or no, after what it may have thought aloud."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_THOUGHTS_BEGIN = re.compile(r"<think(?:ing)?>|◁think▷", re.IGNORECASE)
_THOUGHTS_END = re.compile(r"</think(?:ing)?>|◁/think▷", re.IGNORECASE)
_MARKUP = re.compile(r"\\boxed\{([^{}]*)\}|[*_`#\"$]")
# Atomic, so that "7.x" is not read as 7.
_NUMBER = r"((?>[-+]?[0-9]+(?:\.[0-9]+)?))"
_OF = r"(?:\s*(?:/|out of)\s*([0-9]+(?:\.[0-9]+)?))?"
_ALONE = re.compile(rf"{_NUMBER}{_OF}\.?", re.IGNORECASE)
_NAMED = re.compile(
    rf"\b(?:score|rating|grade|answer)\s*(?:is|:|=)\s*{_NUMBER}{_OF}(?=\s*[,;)}}\n]|\.(?!\w)|\s*\Z)", re.IGNORECASE
)
_WORD_ALONE = re.compile(r"(?:(?:final )?answer(?: is|:)?\s+)?(yes|no)[^\w…]*", re.IGNORECASE)
_WORD_FIRST = re.compile(r"(yes|no)\s*[,.:;!\n–—]", re.IGNORECASE)
_WORD_NAMED = re.compile(r"\banswer\s*(?:is|:)\s*(yes|no)\b(?!\s+(?:and|or)\b|…)", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A chat completion.

    Attributes:
        said: all of it, thoughts included where they come with it.
        text: the answer itself, without markup, that ends in "…" if it was cut off; "" if there is none.
        has_thought: it thought aloud first.
        was_cut: it used up its tokens.
        rows: log-probabilities by token, as far as they are given.
    """

    said: str
    text: str
    has_thought: bool
    was_cut: bool
    rows: Sequence[Any]

    @classmethod
    def of(cls, choice: Mapping[str, Any]) -> Answer:
        """Of a completion's choice, whatever a server may have put there."""
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        content = message.get("content")
        said = content if isinstance(content, str) else ""
        *thoughts, text = _THOUGHTS_END.split(said)
        unfinished = _THOUGHTS_BEGIN.match(text.lstrip()) is not None
        was_cut = choice.get("finish_reason") == "length"
        text = "" if unfinished else _MARKUP.sub(r"\1", text).strip()
        apart = any(isinstance(message.get(key), str) and message[key] for key in ("reasoning_content", "reasoning"))
        logprobs = choice.get("logprobs")
        rows = logprobs.get("content") if isinstance(logprobs, dict) else None
        return cls(
            said, f"{text}…" if text and was_cut else text, bool(thoughts) or unfinished or apart,
            was_cut or unfinished, rows if isinstance(rows, list) else (),
        )  # fmt: skip

    def number(self, highest: float) -> float:
        """The number that it is, or that it names as its score (the last, where it names several), else NaN.

        Of another highest score than this (8/100) it is none.
        """
        alone = _ALONE.fullmatch(self.text)
        named = list(_NAMED.finditer(self.text))
        found = alone or (named[-1] if named else None)
        if found is None or (found[2] and float(found[2]) != highest):
            return math.nan
        return float(found[1])

    def yes(self) -> float:
        """The probability of yes among yes and no, else 1 or 0 by the word; NaN if it says neither."""
        alone = _WORD_ALONE.fullmatch(self.text)
        rows = self.rows[:1]
        if self.has_thought:
            word = alone[1].lower() if alone else ""
            rows = [row for row in self.rows if word and _word(row) == word][-1:]
        shares = _shares(rows)
        if shares is not None:
            return shares[0] / (shares[0] + shares[1])
        named = _WORD_NAMED.findall(self.text)
        first = alone or _WORD_FIRST.match(self.text)
        found = first[1] if first else named[-1] if named else ""
        return float(found.lower() == "yes") if found else math.nan


def _word(row: Any) -> str:
    """The token of a row as a word."""
    return str(row.get("token")).strip().lower() if isinstance(row, dict) else ""


def _shares(rows: Sequence[Any]) -> tuple[float, float] | None:
    """The probabilities of yes and no at the first of the rows, every spelling added up; None if not given."""
    try:
        given = [(_word(row), min(0.0, float(row["logprob"]))) for row in rows[0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    yes, no = (sum(math.exp(logprob) for token, logprob in given if token == word) for word in ("yes", "no"))
    return (yes, no) if math.isfinite(yes + no) and yes + no > 0 else None
