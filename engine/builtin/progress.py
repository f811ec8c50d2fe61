"""Progress of a long training: rate and time left on one line, and saves that a later start resumes from."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Progress:
    """Prints a line every `every` steps: step, losses (averaged since the last line), seconds a step, minutes left."""

    name: str
    num_steps: int
    first_step: int = 0
    every: int = 50
    _began: float = field(default_factory=time.monotonic)
    _sums: dict[str, float] = field(default_factory=dict)
    _count: int = 0

    def report(self, step: int, **values: float) -> None:
        """Take one step's numbers; print when a line is due."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        done = step + 1
        if done % self.every and done != self.num_steps:
            return
        seconds = (time.monotonic() - self._began) / (done - self.first_step)
        numbers = "  ".join(f"{name} {total / self._count:.4f}" for name, total in self._sums.items())
        left = seconds * (self.num_steps - done) / 60
        print(
            f"{self.name} {done}/{self.num_steps}  {numbers}  {seconds:.3f} s a step, {left:.1f} min left", flush=True
        )
        self._sums, self._count = {}, 0


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a training state, or None where there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
