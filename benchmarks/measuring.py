"""What benchmarks share: matplotlib, the machine's name, and a window's positions one after another."""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from engine.sampling.window import last_position
from engine.settings import RunSettings


def load_pyplot() -> Any:
    """Pyplot, which draws to files. Ends the program, with the command that installs matplotlib, if it is not here."""
    if find_spec("matplotlib") is None:
        command = '.venv/bin/pip install -c constraints.txt -e ".[bench]"'
        sys.exit(f"Benchmarks need matplotlib, which is not installed here; install it with `{command}`.")
    import_module("matplotlib").use("Agg")
    return import_module("matplotlib.pyplot")


def device_name() -> str:
    """The GPU's name, or the processor's with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def at_round(settings: RunSettings, place: int, rounds: int) -> RunSettings:
    """The settings with the window held at the `place`-th of `rounds` positions spread evenly over its range."""
    window = settings.window
    last = last_position(window, settings.sampling.num_steps)
    if window.strategy == "frozen":
        return settings
    position = window.start + (2 * place + 1) * (last + 1 - window.start) // (2 * rounds)
    held = window.model_copy(update={"strategy": "frozen", "start": position, "last": None})
    return settings.model_copy(update={"window": held})
