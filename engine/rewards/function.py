"""A creator's own Python function as a reward.

`def my_reward(images: list[PIL.Image.Image], prompts: list[str]) -> Sequence[float | None]`: a number an image, higher
is better; None or NaN where there is none. Named as module:name, or by an entry point of the group `palate.rewards`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from PIL import Image

from engine.rewards.base import Pixels, Scores

GROUP = "palate.rewards"


class UserFunction:
    """What the function says of each image."""

    def __init__(self, place: str) -> None:
        """`place` is module:name or an entry point. Raises ValueError if there is no such function."""
        self._function = load_function(place)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do: what the function cannot judge, it leaves out."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3)."""
        given = self._function([Image.fromarray(image) for image in images], list(prompts))
        return Scores(np.array([np.nan if value is None else value for value in given], dtype=np.float32))


def load_function(place: str) -> Callable[..., Any]:
    """The function at module:name, or of the entry point of that name. Raises ValueError, in a sentence."""
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if name else _entry_point(place)
    except Exception as error:  # whatever a creator's module does when it is loaded
        raise ValueError(
            f"The reward function {place} cannot be loaded: {type(error).__name__}: {error}. Give module:name of a "
            f"module that Python finds from here, or the name of an entry point in the group {GROUP}."
        ) from error
    if not callable(found):
        raise ValueError(f"{place} is no function; a reward function takes images and prompts, and gives numbers.")
    return found


def _entry_point(name: str) -> Any:
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(sorted(entry_points(group=GROUP).names)) or "there are none"
        raise LookupError(f"no entry point {name} in the group {GROUP} ({known})")
    return next(iter(found)).load()
