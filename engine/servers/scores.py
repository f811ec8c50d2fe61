"""Palate's own protocol of reward servers (docs/guides/reward-servers.md): images and prompts there, scores back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.servers.connection import Connection, ServerError
from engine.servers.images import encode


def ask_scores(
    connection: Connection, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]
) -> list[float]:
    """A score for each uint8 image (H, W, 3); NaN where the server gives none. Raises ServerError."""
    request: dict[str, Any] = {"images": [encode(image) for image in images], "prompts": list(prompts)}
    if connection.settings.model:
        request["model"] = connection.settings.model
    answer = connection.ask(request)
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise ServerError(f'the server {connection.origin} answered no list of "scores"')
    if len(scores) != len(images):
        raise ServerError(
            f"the server {connection.origin} answered {len(scores)} scores for {len(images)} images"
        )
    return [_number(connection, score) for score in scores]


def _number(connection: Connection, score: object) -> float:
    """A score as a float; NaN for null, NaN and infinity. Raises ServerError for what is no number."""
    if score is None:
        return math.nan
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ServerError(f"the server {connection.origin} answered a score that is no number")
    try:
        value = float(np.float32(score))
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan
