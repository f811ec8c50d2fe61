"""A worker: answers bells by claiming jobs, one training and one light job at a time, and keeps house meanwhile.

Its rounds, each a thread: say that it is there, take expired leases away, ring for jobs that wait, prune messages.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from store import jobs, presence
from store.config import Config
from store.database import Database
from store.jobs import Fenced, JobKind, Lease
from workers.celery_app import broker_folder
from workers.device import device_here
from workers.queue import ring
from workers.supervisor import Supervisor

logger = logging.getLogger(__name__)

_MAX_RINGS = 20
_KEEP_MESSAGES_SECONDS = 600.0
_FORGET_WORKERS_SECONDS = 600.0


class Worker:
    """One worker process's state. Connects when first used."""

    def __init__(self, config: Config, database: Database) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._config = config
        self._database = database
        self._draining = threading.Event()
        self._ended = threading.Event()
        self._dispatch_now = threading.Event()
        self._slots = {"train": threading.Semaphore(1), "export": threading.Semaphore(1)}
        self._rounds = [
            threading.Thread(target=self._every, args=(seconds, action), name=action.__name__, daemon=True)
            for seconds, action in (
                (config.heartbeat_seconds, self._say_so),
                (config.reap_seconds, self._reap),
                (config.dispatch_seconds, self._dispatch),
            )
        ]

    def start(self) -> None:
        """Begin the rounds."""
        for thread in self._rounds:
            thread.start()

    def drain(self) -> None:
        """Take no more jobs; engines write their checkpoints, and their jobs go back to the queue."""
        self._draining.set()

    def stop(self) -> None:
        """End the rounds."""
        self._ended.set()
        self._dispatch_now.set()
        for thread in self._rounds:
            thread.join()
        try:
            with self._database.write() as session:
                presence.worker_gone(session, self.name)
        except Exception:
            logger.warning("The database is away; this worker's row is forgotten by another.")

    def work(self, kind: JobKind, job_id: str) -> None:
        """Answer a bell: take the job that has waited longest, or this one, if there is a free slot."""
        slot = self._slots[kind]
        if self._draining.is_set() or not slot.acquire(blocking=False):
            return
        try:
            try:
                lease = self._claim(kind, job_id)
            except SQLAlchemyError as error:
                logger.warning("The database is away (%s); the job waits.", type(error).__name__)
                return
            if lease is None:
                return
            self._supervise(lease)
        finally:
            slot.release()
        self._dispatch_now.set()  # the next in line need not wait for the round

    def _claim(self, kind: JobKind, job_id: str) -> Lease | None:
        with self._database.read() as session:
            waiting = [job.id for job in jobs.queued_jobs(session, kind, limit=3)]
        for candidate in (*waiting, job_id):
            with self._database.write() as session:
                lease = jobs.claim(session, candidate, self.name, self._config.lease_seconds)
            if lease is not None:
                return lease
        return None

    def _supervise(self, lease: Lease) -> None:
        logger.info("Job %s begins (epoch %d, attempt %d)", lease.job_id, lease.epoch, lease.attempt)
        try:
            Supervisor(self._config, self._database, lease, self._draining).run()
        except Fenced as error:
            logger.warning("%s The engine was ended.", error)
        except Exception:
            logger.exception("Job %s met a fault of the worker's", lease.job_id)
            try:
                with self._database.write() as session:
                    jobs.fail(session, lease, "The worker met a fault of its own; see its log, then retry.", retry=True)
            except Fenced:
                logger.warning("Job %s is no longer ours.", lease.job_id)
        else:
            logger.info("Job %s ends", lease.job_id)

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something now and every few seconds, whatever becomes of it."""
        wake = self._dispatch_now if action == self._dispatch else self._ended
        while not self._ended.is_set():
            try:
                action()
            except Exception as error:
                # A database that is away comes back; the rounds must still be there then.
                logger.warning("The round %s failed: %s", action.__name__, type(error).__name__)
            wake.wait(seconds)
            if wake is self._dispatch_now:
                wake.clear()

    def _say_so(self) -> None:
        with self._database.write() as session:
            presence.worker_seen(session, self.name, host=socket.gethostname(), device=device_here())
            presence.forget_silent_workers(session, _FORGET_WORKERS_SECONDS)

    def _reap(self) -> None:
        with self._database.write() as session:
            again = jobs.reap(session)
        if again:
            logger.warning("Leases ran out: %s", ", ".join(again))
            self._dispatch_now.set()
        _prune_messages(broker_folder(self._config) / "processed")

    def _dispatch(self) -> None:
        """Ring for jobs that wait and that this worker has a slot for: bells get lost, rows do not."""
        if self._draining.is_set():
            return
        with self._database.read() as session:
            waiting = jobs.queued_jobs(session)
        for kind, slot in self._slots.items():
            if slot.acquire(blocking=False):
                slot.release()
                for job in [job for job in waiting if job.kind == kind][:_MAX_RINGS]:
                    ring(self._config, job.id)


def _prune_messages(folder: Path) -> None:
    """Remove messages that were answered long ago (the filesystem broker keeps them)."""
    if not folder.is_dir():
        return
    for message in folder.iterdir():
        if message.stat().st_mtime < time.time() - _KEEP_MESSAGES_SECONDS:
            message.unlink(missing_ok=True)
