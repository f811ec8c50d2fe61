"""Lengths of time in words (free of torch)."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A length of time as a person says it: "8 s", "2 min", "1 h 20 min", "3 days"."""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return f"{max(1, round(seconds)) if seconds > 0 else 0} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"
