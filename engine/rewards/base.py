"""What the engine asks of a reward, and how several are asked at once without one failure spoiling the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.batching import BatchSize, DeviceFullError

Pixels = NDArray[np.uint8]
Column = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """A reward's verdict on N images.

    Attributes:
        values: (N,), higher is better; NaN where an image could not be scored.
        extras: further measures (N,) by name, shown beside the reward and never trained on.
        failure: why some could not be scored, as part of a sentence.
    """

    values: Column
    extras: Mapping[str, Column] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class ScoredBatch:
    """The verdicts of several rewards on the same N images.

    Attributes:
        values: (N,) scores by reward; NaN where one failed.
        extras: further measures (N,) by name.
        seconds: time each reward took.
        messages: a sentence for each reward that failed somewhere.
    """

    values: dict[str, Column]
    extras: dict[str, Column]
    seconds: dict[str, float]
    messages: tuple[str, ...]


class Reward(Protocol):
    """Scores images for prompts."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError, naming the first prompt it cannot judge and what to do, before a run begins."""
        ...

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3), each for its own prompt."""
        ...


def score_all(
    rewards: Mapping[str, Reward], images: Pixels, prompts: Sequence[str], size: BatchSize | None = None
) -> ScoredBatch:
    """Ask every reward about uint8 images (N, H, W, 3). What fails becomes NaN and a message, never a score of 0.

    A reward is given at most `size` images at a time (None = all), and fewer where the device's memory runs out.
    """
    assert len(images) == len(prompts), "an image a prompt"
    size = size or BatchSize("score", max(1, len(images)))
    values: dict[str, Column] = {}
    extras: dict[str, Column] = {}
    seconds: dict[str, float] = {}
    messages: list[str] = []
    for name, reward in rewards.items():
        begun = time.perf_counter()
        scores, message = _score_safely(name, reward, images, prompts, size)
        seconds[name] = time.perf_counter() - begun
        values[name] = scores.values
        for measure, column in scores.extras.items():
            # A reward that is used twice gives each of its measures twice.
            extras[measure if measure not in extras else f"{name} {measure}"] = column
        if message:
            messages.append(message)
    return ScoredBatch(values, extras, seconds, tuple(messages))


def _score_safely(
    name: str, reward: Reward, images: Pixels, prompts: Sequence[str], size: BatchSize
) -> tuple[Scores, str]:
    """A reward's scores, and a sentence on what went wrong ("" if nothing did)."""

    def part(rows: slice) -> Scores:
        return _checked(reward.score(images[rows], prompts[rows]), len(images[rows]))

    try:
        scores = _joined(size.map(len(images), part))
        reason = scores.failure
    except DeviceFullError:
        raise
    except Exception as error:  # a reward is foreign code: whatever it raises must not end a run
        scores, reason = _score_one_by_one(reward, images, prompts), _words(error)
    num_failed = int((~np.isfinite(scores.values)).sum())
    if num_failed == 0:
        return scores, ""
    reason = reason or "the score is not a number"
    share = f"{num_failed} of {len(images)} images"
    return scores, f"The reward {name} could not score {share} ({reason}); they are left out."


def _joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts, with the first failure that one of them tells of."""
    if len(parts) == 1:
        return parts[0]
    measures = set.intersection(*(set(part.extras) for part in parts))
    return Scores(
        np.concatenate([part.values for part in parts]),
        {name: np.concatenate([part.extras[name] for part in parts]) for name in parts[0].extras if name in measures},
        next((part.failure for part in parts if part.failure), ""),
    )


def _score_one_by_one(reward: Reward, images: Pixels, prompts: Sequence[str]) -> Scores:
    """Scores of a batch that failed as a whole: the images at fault are NaN, the others keep their scores."""
    values = np.full(len(images), np.nan, dtype=np.float32)
    extras: dict[str, Column] = {}
    for i in range(len(images)):
        try:
            one = _checked(reward.score(images[i : i + 1], prompts[i : i + 1]), 1)
        except Exception:  # noqa: S112 - the batch's own failure is reported by the caller
            continue
        values[i] = one.values[0]
        for key, column in one.extras.items():
            extras.setdefault(key, np.full(len(images), np.nan, dtype=np.float32))[i] = column[0]
    return Scores(values, extras)


def _checked(scores: Scores, num_images: int) -> Scores:
    """Scores of the right shape with every infinity a NaN. Raises ValueError if the shape is wrong."""
    for column in (scores.values, *scores.extras.values()):
        if column.shape != (num_images,):
            raise ValueError(f"it gave scores of shape {column.shape} for {num_images} images")
    values = scores.values.astype(np.float32)
    return Scores(np.where(np.isfinite(values), values, np.float32(np.nan)), scores.extras, scores.failure)


def _words(error: Exception) -> str:
    """An exception as part of a sentence."""
    return (str(error).strip().rstrip(".") or type(error).__name__).replace("\n", " ")
