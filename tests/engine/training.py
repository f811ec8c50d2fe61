"""A run as the engine's process leaves it: settings and events beside samples and checkpoints."""

from __future__ import annotations

from pathlib import Path

from engine.events import Event, IterationDone
from engine.settings import RunSettings
from engine.train import train


def train_in(settings: RunSettings, run: Path) -> list[IterationDone]:
    """Train into the folder `run`; returns the events of its iterations."""
    run.mkdir(exist_ok=True)
    (run / "settings.yaml").write_text(settings.to_yaml())
    events: list[Event] = []
    train(settings, run, events.append)
    (run / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
    return [event for event in events if isinstance(event, IterationDone)]
