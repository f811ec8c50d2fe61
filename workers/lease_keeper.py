"""Keeping a lease: a thread that heartbeats, and notices a request to cancel, whatever else the worker is doing."""

from __future__ import annotations

import logging
import threading
import time
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from store import jobs
from store.config import Config
from store.database import Database
from store.jobs import Beat, Lease

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Heartbeats from entry to exit. `lost` = the work must stop: fenced, or no heartbeat got through for too long."""

    def __init__(self, config: Config, database: Database, lease: Lease) -> None:
        self._config = config
        self._database = database
        self._lease = lease
        self._fenced = threading.Event()
        self._cancel = threading.Event()
        self._ended = threading.Event()
        self._last_heartbeat = time.monotonic()  # the claim was one
        self._thread = threading.Thread(target=self._keep, name=f"lease of {lease.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """Whether the lease is gone, or must be taken to be: also while a heartbeat hangs, or the process hung."""
        silent = time.monotonic() - self._last_heartbeat
        return self._fenced.is_set() or silent > self._config.heartbeat_loss_seconds

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked for a stop."""
        return self._cancel.is_set()

    def _keep(self) -> None:
        due = self._last_heartbeat
        while not self._ended.wait(self._config.peek_seconds):
            try:
                if time.monotonic() >= due:
                    beat = self._heartbeat()
                    self._last_heartbeat = time.monotonic()
                    due = self._last_heartbeat + self._config.heartbeat_seconds
                else:
                    with self._database.read() as session:
                        beat = jobs.peek(session, self._lease)
            except SQLAlchemyError as error:
                silent = time.monotonic() - self._last_heartbeat
                logger.warning("No heartbeat for %.0f s: %s", silent, type(error).__name__)
                continue
            if beat is None:
                self._fenced.set()
                return
            if beat.cancel_requested:
                self._cancel.set()

    def _heartbeat(self) -> Beat | None:
        with self._database.write() as session:
            return jobs.heartbeat(session, self._lease, self._config.lease_seconds)
