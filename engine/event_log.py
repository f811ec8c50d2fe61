"""A run's `events.jsonl`: written line by line, and after a kill what of it still holds (torch-free)."""

from __future__ import annotations

import os
import time
from pathlib import Path

from engine.events import CheckpointSaved, Event, Finished, Message, SamplesDrawn, parse_event
from engine.whole_files import write_whole


class EventLog:
    """`events.jsonl` of a run's folder: appended to, a line an event, and remembered for the result."""

    def __init__(self, run: Path, keep_until: int) -> None:
        """Keep what an earlier process wrote up to `keep_until` finished iterations; drop the rest."""
        self._run = run
        path = run / "events.jsonl"
        self.kept = _events_up_to(path, keep_until)
        write_whole(path, "".join(event.model_dump_json() + "\n" for event in self.kept))
        self.samples = [event for event in self.kept if isinstance(event, SamplesDrawn)]
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Append one event, at once visible to readers."""
        if isinstance(event, SamplesDrawn):
            self.samples.append(event)
        self._file.write(event.model_dump_json() + "\n")
        self._file.flush()
        if isinstance(event, CheckpointSaved | Finished):
            os.fsync(self._file.fileno())

    def tell_of(self, checkpoint: Path, step: int) -> None:
        """Tell of a checkpoint that is resumed from, where a kill came between it and its event; not another run's."""
        told = any(isinstance(event, CheckpointSaved) and event.step == step for event in self.kept)
        if not told and checkpoint.resolve().parent == (self._run / "checkpoints").resolve():
            self(checkpoint_saved(self._run, checkpoint, step))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_failed_start(run: Path) -> bool:
    """Whether all that a run's folder tells of is a start that ended in a mistake, before anything was trained.

    The mistake must be the last thing told: after it the process that told it ends, so none is at work there.
    """
    if any((run / "checkpoints").glob("*")):
        return False
    try:
        events = [parse_event(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    except ValueError:
        return False
    last = events[-1] if events else None
    return isinstance(last, Message) and last.level == "error" and not any(event.step for event in events)


def checkpoint_saved(run: Path, checkpoint: Path, step: int) -> CheckpointSaved:
    """The event of a complete checkpoint folder of the run in a folder."""
    path = checkpoint.resolve().relative_to(run.resolve()).as_posix()
    num_bytes = sum(file.stat().st_size for file in checkpoint.iterdir())
    return CheckpointSaved(time=time.time(), step=step, path=path, num_bytes=num_bytes)


def _events_up_to(path: Path, step: int) -> list[Event]:
    """The events of an earlier process that still hold: none past `step`, no ending, no half-written line."""
    if step == 0 or not path.exists():
        return []
    kept: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = parse_event(line)
        except ValueError:
            break
        if not isinstance(event, Finished) and (event.step is None or event.step <= step):
            kept.append(event)
    return kept
