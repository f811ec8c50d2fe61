"""Lengths of time as people say them."""

from __future__ import annotations

import pytest

from engine.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.2, "1 s"), (8, "8 s"), (59.6, "1 min"), (125, "2 min"), (3599, "1 h"), (4800, "1 h 20 min"),
     (60 * 60 * 24 * 3, "3 days"), (-5, "0 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
