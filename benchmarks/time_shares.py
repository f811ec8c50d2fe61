"""Where an iteration's time goes: inside the transformer, the autoencoder and the rewards, or around them.

`python benchmarks/time_shares.py [--presets mixgrpo mixgrpo_flash turbo] [--iterations 3]`

The built-in model, each preset with its own settings in bfloat16. Every forward of the transformer, every backward
pass, decode and scoring is timed where it happens (a GPU is waited for); what is left is the engine around them. Writes
benchmarks/results/time_shares.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measuring import device_name

from engine import train as training
from engine.presets import PRESETS
from engine.run import Run, prepare
from engine.settings import RunSettings
from engine.versions import versions

RESULTS = Path(__file__).parent / "results"
PRESETS_SHOWN = ("dance_grpo", "mixgrpo", "mixgrpo_flash", "turbo")
PARTS = ("transformer forward, drawing", "transformer forward, training", "backward", "decode", "score")
GOAL = 0.9


def preset_settings(name: str) -> RunSettings:
    """The preset on the built-in model."""
    preset = PRESETS[name].make().model_dump()
    preset["model"] |= {"precision": "bfloat16"}
    preset |= {"rewards": [{"name": "vividness"}, {"name": "composition"}]}
    return RunSettings.model_validate(preset)


class Clock:
    """Seconds by part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """The time, after all that the device was asked to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, call: Callable[..., Any], part: Callable[[], str]) -> Callable[..., Any]:
        """The call, its time added to the part named when it begins."""

        def wrapper(*arguments: Any, **options: Any) -> Any:
            name, begun = part(), self.now()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds[name] += self.now() - begun

        return wrapper


@contextmanager
def watched(run: Run, clock: Clock) -> Iterator[None]:
    """Time the run's parts inside the block."""

    def forward_part() -> str:
        return PARTS[1] if torch.is_grad_enabled() else PARTS[0]

    transformer: Any = run.model.transformer
    with (
        mock.patch.object(transformer, "forward", clock.timed(transformer.forward, forward_part)),
        mock.patch.object(torch.Tensor, "backward", clock.timed(torch.Tensor.backward, lambda: PARTS[2])),
        mock.patch.object(run.model, "decode", clock.timed(run.model.decode, lambda: PARTS[3])),
        mock.patch.object(training, "score_all", clock.timed(training.score_all, lambda: PARTS[4])),
    ):
        yield


def measure(name: str, iterations: int) -> dict[str, float]:
    """Shares of the time of some iterations, after one to warm up; "around them" is what is in no part."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(preset_settings(name), Path(folder), lambda _: None, None)
        training.update(run, training.sample_and_score(run))
        clock = Clock(run.device)
        with watched(run, clock):
            begun = clock.now()
            for _ in range(iterations):
                run.step += 1
                training.update(run, training.sample_and_score(run))
            total = clock.now() - begun
    shares = {part: clock.seconds[part] / total for part in PARTS}
    rounded = {part: round(share, 4) for part, share in shares.items()}
    return rounded | {
        "around them": round(1 - sum(shares.values()), 4),
        "seconds_an_iteration": round(total / iterations, 3),
    }


def main() -> None:
    """Parse the command line, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS_SHOWN))
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    for name in arguments.presets:
        table[name] = measure(name, arguments.iterations)
        inside = 1 - table[name]["around them"]
        parts = "  ".join(f"{part} {table[name][part]:.1%}" for part in PARTS)
        print(f"{name:22} {inside:.1%} inside (goal {GOAL:.0%}): {parts}", flush=True)
    report = {"device": device_name(), "versions": versions(), "iterations": arguments.iterations, "shares": table}
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "time_shares.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
