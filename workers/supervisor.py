"""Supervising one leased job: an engine process is started, its words written under the lease, its end judged.

How an engine's end is judged: a `finished: completed` event and exit 0 is done; a stop we asked for is cancelled, or
queued again at no cost of an attempt; exit 2 is the creator's mistake, not tried again; all else, exit 0 without a
finished event included, is a failure that is tried again while attempts last.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from engine.events import Finished
from store import files, jobs, results
from store.config import Config
from store.database import Database
from store.jobs import Fenced, Lease
from workers.engine_process import EXIT_USER_MISTAKE, EngineProcess, describe_exit, last_lines
from workers.event_writer import EventWriter
from workers.launch import ExportLaunch, TrainingLaunch, prepare_export, prepare_training
from workers.lease_keeper import LeaseKeeper

logger = logging.getLogger(__name__)

StopReason = Literal["cancel", "drain"]
_LOG_LINES = 40


class Supervisor:
    """Works on one leased job to its end. `draining` is set when the worker itself is told to stop."""

    def __init__(self, config: Config, database: Database, lease: Lease, draining: threading.Event) -> None:
        self._config = config
        self._database = database
        self._lease = lease
        self._draining = draining
        self._num_own_lines = 0

    def run(self) -> None:
        """Do the job. Raises Fenced if the lease was lost on the way; the engine is gone then, as always."""
        with LeaseKeeper(self._config, self._database, self._lease) as keeper:
            self._keeper = keeper
            try:
                if self._lease.kind == "train":
                    self._train(prepare_training(self._config, self._database, self._lease))
                else:
                    self._export(prepare_export(self._config, self._database, self._lease))
            except (ValueError, OSError) as error:
                # Before the engine runs: a checkpoint that is gone, a full disk, an interpreter that is not there.
                logger.exception("Job %s could not be carried out", self._lease.job_id)
                message = str(error) if isinstance(error, ValueError) else f"The worker met a fault: {error.strerror}."
                self._fail(message, retry=isinstance(error, OSError))

    def _train(self, launch: TrainingLaunch) -> None:
        self._log(self._opening_line(launch))
        log = launch.folder / "engine.log"
        writer = EventWriter(self._config, self._database, self._lease, launch)
        with EngineProcess(launch.command, log=log) as engine:
            code, stopped = self._watch(engine, writer.write_new)
        self._persist_all(writer)
        finished = writer.finished
        if finished is not None and finished.outcome == "completed" and code == 0:
            self._persist(lambda session: jobs.finish(session, self._lease))
        elif stopped == "cancel":
            self._persist(lambda session: jobs.cancelled(session, self._lease))
        elif stopped == "drain" or (code == 0 and finished is not None and finished.outcome == "stopped"):
            self._log("The worker was stopped; the run goes on from its checkpoint when a worker is free.")
            self._persist(lambda session: jobs.release(session, self._lease))
        else:
            lines = last_lines(log, _LOG_LINES)
            if code != EXIT_USER_MISTAKE and lines:
                self._log("\n".join(lines), level="error")
            self._fail(self._cause(code, finished, writer, lines), retry=code != EXIT_USER_MISTAKE)

    def _export(self, launch: ExportLaunch) -> None:
        log, output = launch.out.parent / "engine.log", launch.out.parent / "report.txt"
        told: list[str] = []

        def record_new() -> None:
            """Record the file once the engine has told of it: whatever becomes of sending it, it is not lost."""
            nonlocal told
            report = last_lines(output, _LOG_LINES)
            if report != told and launch.out.is_file():
                path, num_bytes = files.relative_to_home(self._config, launch.out), launch.out.stat().st_size
                with self._database.write() as session:
                    results.record_export(
                        session, self._lease, path=path, num_bytes=num_bytes, report="\n".join(report)
                    )
                told = report

        with EngineProcess(launch.command, log=log, output=output) as engine:
            code, stopped = self._watch(engine, record_new)
        self._until_written(record_new)
        if code == 0 and told:
            self._persist(lambda session: jobs.finish(session, self._lease))
        elif stopped == "cancel":
            self._persist(lambda session: jobs.cancelled(session, self._lease))
        elif stopped == "drain":
            self._persist(lambda session: jobs.release(session, self._lease))
        else:
            lines = last_lines(log, _LOG_LINES)
            self._fail(self._cause(code, None, None, lines), retry=code != EXIT_USER_MISTAKE)

    def _watch(self, engine: EngineProcess, write_new: Callable[[], None]) -> tuple[int, StopReason | None]:
        """Wait for the engine's end, writing its words and passing on requests to stop. Raises Fenced."""
        stopped: StopReason | None = None
        kill_at = float("inf")
        while (code := engine.wait(self._config.poll_seconds)) is None:
            self._raise_if_lost()
            try:
                write_new()
            except (OperationalError, InterfaceError) as error:
                logger.warning("The database is away (%s); what the engine said waits.", type(error).__name__)
            if stopped is None:
                stopped = self._stop_reason()
                if stopped is not None:
                    engine.terminate()
                    kill_at = time.monotonic() + self._config.stop_grace_seconds
            elif time.monotonic() > kill_at:
                engine.kill()
        return code, stopped

    def _stop_reason(self) -> StopReason | None:
        if self._keeper.cancel_requested:
            return "cancel"
        return "drain" if self._draining.is_set() else None

    def _raise_if_lost(self) -> None:
        if self._keeper.lost:
            raise Fenced(f"The lease of job {self._lease.job_id} was lost in epoch {self._lease.epoch}.")

    def _persist(self, write: Callable[[Session], None]) -> None:
        """One transaction, tried until the database answers or the lease is lost (Fenced)."""

        def transaction() -> None:
            with self._database.write() as session:
                write(session)

        self._until_written(transaction)

    def _until_written(self, write: Callable[[], None]) -> None:
        """Try until the database answers or the lease is lost (Fenced)."""
        while True:
            try:
                return write()
            except (OperationalError, InterfaceError) as error:
                logger.warning("The database is away (%s); trying again.", type(error).__name__)
                self._raise_if_lost()
                time.sleep(self._config.peek_seconds)

    def _persist_all(self, writer: EventWriter) -> None:
        """Write what the engine said last; it is gone, so there is an end to it."""
        while True:
            try:
                writer.write_new()
            except (OperationalError, InterfaceError):
                self._raise_if_lost()
                time.sleep(self._config.peek_seconds)
            else:
                if writer.up_to_date:
                    return

    def _fail(self, message: str, *, retry: bool) -> None:
        self._persist(lambda session: jobs.fail(session, self._lease, message, retry=retry))

    def _log(self, text: str, level: str = "info") -> None:
        self._num_own_lines += 1
        number = -self._num_own_lines
        self._persist(lambda session: results.record_log(session, self._lease, text, number=number, level=level))

    def _opening_line(self, launch: TrainingLaunch) -> str:
        attempt = f" (attempt {self._lease.attempt})" if self._lease.attempt > 1 else ""
        if launch.resume_steps:
            return f"A worker takes the run on from the checkpoint of step {launch.resume_steps[0]}{attempt}."
        return f"A worker starts the run{attempt}."

    def _cause(self, code: int, finished: Finished | None, writer: EventWriter | None, lines: list[str]) -> str:
        """Why the engine failed, in a sentence for the creator."""
        if code == EXIT_USER_MISTAKE:
            said = (writer.last_error if writer else None) or (lines[-1] if lines else None)
            return said or "The engine refused these settings without saying why; see the log."
        if finished is not None and finished.outcome == "failed" and finished.reason:
            return finished.reason
        if code == 0 and self._lease.kind == "train":
            return "The engine ended without saying that it had finished; see the log, then retry."
        last = f" Its last words: {lines[-1][:500]}" if lines else ""
        return f"The engine crashed: {describe_exit(code)}.{last}"
