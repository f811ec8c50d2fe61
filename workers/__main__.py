"""`python -m workers [--with-parent]`: one worker, until SIGTERM or SIGINT.

A first signal lets engines write their checkpoints and gives their jobs back. `--with-parent`: a parent that dies,
however, is as good as a SIGTERM.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from typing import Any

from celery import signals
from celery.exceptions import SecurityWarning

from store.config import Config, ConfigError, load_config
from store.database import Database
from store.jobs import JobKind
from store.schema import SchemaError, upgrade
from workers.celery_app import TASKS, make_app
from workers.worker import Worker

_PR_SET_PDEATHSIG = 1
_ARGUMENTS = ("--quiet", "worker", "--loglevel=WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat")


def main(arguments: list[str]) -> int:
    """Run a worker; returns the exit code: 0 after a signal, 2 if it cannot start."""
    if "--with-parent" in arguments:
        _end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        config = load_config()
        upgrade(config)
    except (ConfigError, SchemaError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - for the person who started it
        return 2
    database = Database(config)
    worker = Worker(config, database)
    worker.start()
    try:
        _listen(config, worker)
    finally:
        worker.stop()
        database.dispose()
    return 0


def _listen(config: Config, worker: Worker) -> None:
    """Answer bells until a signal, then wait for the jobs at hand."""
    app = make_app(config)
    for kind, task in TASKS.items():
        app.task(_answer(worker, kind), name=task)

    def drain(**_: Any) -> None:
        worker.drain()

    signals.worker_shutting_down.connect(drain)
    # Celery's worry about the superuser is pickle; only JSON is accepted here, and in a container root is usual.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    app.worker_main([*_ARGUMENTS, "--hostname", f"{worker.name}@%h"])


def _answer(worker: Worker, kind: JobKind) -> Any:
    def answer(job_id: str) -> None:
        worker.work(kind, str(job_id))

    return answer


def _end_with_parent() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
