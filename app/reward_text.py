"""The list that `palate rewards` prints."""

from __future__ import annotations

from app import words
from engine.catalogue import REWARD_INFO
from engine.catalogue.presence import what_lacks


def rewards_text() -> str:
    """Three lines a reward: name and what it measures; scores, size and licence; whether it can score here."""
    blocks = []
    for name, info in REWARD_INFO.items():
        score_range = f"{info.range[0]:g} to {info.range[1]:g};".replace("-", "−")
        size = f"{words.size(int(info.size_mb * 1e6))} of weights" if info.size_mb else "no weights"
        memory = f", about {words.size(int(info.memory_mb * 1e6))} of memory" if info.memory_mb else ""
        lacking = what_lacks(name)
        blocks.append(
            f"{name}: {info.help}\n"
            f"    scores {score_range} {size}{memory}; licence: {info.licence}\n"
            + f"    {'not ready: ' + lacking if lacking else 'ready'}"
        )
    return "\n".join(blocks)
