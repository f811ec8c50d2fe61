"""Writing an engine's events to the database as they come, each under the lease, each once."""

from __future__ import annotations

import time

from sqlalchemy.orm import Session

from engine.events import CheckpointSaved, Finished, IterationDone, Message, SamplesDrawn, Started
from store import results
from store.config import Config
from store.database import Database
from store.jobs import Lease
from workers.event_tail import EventTail, NumberedEvent
from workers.launch import TrainingLaunch, prune_checkpoints


class EventWriter:
    """From events.jsonl to rows. A batch that could not be committed is kept and tried again, whole."""

    def __init__(self, config: Config, database: Database, lease: Lease, launch: TrainingLaunch) -> None:
        self._config = config
        self._database = database
        self._lease = lease
        self._keep_checkpoints = launch.keep_checkpoints
        self._tail = EventTail(launch.folder / "events.jsonl")
        self._pending: list[NumberedEvent] = []
        self._heard_at = time.monotonic()
        self._stall_reported = False
        self.finished: Finished | None = None
        self.last_error: str | None = None
        self.up_to_date = False

    def write_new(self) -> None:
        """Commit the events since the last call. Raises Fenced, or the database's error, after which call again."""
        if not self._pending:
            self._pending = self._tail.read()
        if not self._pending:
            self.up_to_date = True
            self._report_stall()
            return
        self.up_to_date = False
        with self._database.write() as session:
            for numbered in self._pending:
                self._record(session, numbered)
        saved = any(isinstance(numbered.event, CheckpointSaved) for numbered in self._pending)
        self._pending = []
        self._heard_at, self._stall_reported = time.monotonic(), False
        if saved:
            prune_checkpoints(self._config, self._database, self._lease, self._keep_checkpoints)

    def _record(self, session: Session, numbered: NumberedEvent) -> None:
        event, lease = numbered.event, self._lease
        match event:
            case Started():
                results.record_started(session, lease, event)
            case IterationDone():
                results.record_iteration(session, lease, event)
            case SamplesDrawn():
                results.record_samples(session, lease, event)
            case CheckpointSaved():
                results.record_checkpoint(session, lease, event)
            case Message():
                if event.level == "error":
                    self.last_error = event.text
                results.record_log(
                    session, lease, event.text,
                    number=numbered.number, level=event.level, time=event.time or None, step=event.step,
                )  # fmt: skip
            case Finished():
                self.finished = event

    def _report_stall(self) -> None:
        """A heartbeat proves that the worker lives, not that the engine gets on: say so once if it does not."""
        silent = time.monotonic() - self._heard_at
        if silent < self._config.stall_seconds or self._stall_reported:
            return
        text = f"Nothing heard from the engine for {silent / 60:.0f} minutes. Cancel the run if it should be quicker."
        with self._database.write() as session:
            # Far below the supervisor's own lines, which count down from -1.
            number = -1_000_000 - int(time.monotonic())
            results.record_log(session, self._lease, text, number=number, level="warning")
        self._stall_reported = True
