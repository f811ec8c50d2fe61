"""The door to the workers: ring for a job that is committed. All the workbench needs of this room."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from celery import Celery

from store.config import Config
from store.jobs import kind_of
from workers.celery_app import TASKS, broker_folder, make_app

logger = logging.getLogger(__name__)


def ring(config: Config, job_id: str) -> bool:
    """Tell the workers, by name, that a job waits; False if the broker cannot be reached.

    Nothing is lost by a False: the workers ring again for whatever waits, every few seconds.
    """
    try:
        if config.broker.startswith("filesystem://"):
            _ring_by_file(config, job_id)
        else:
            _send(make_app(config), job_id)
    # Each transport has its own exceptions for a broker that is away.
    except Exception as error:
        logger.info("The broker cannot be reached (%s); the job waits for the dispatcher.", type(error).__name__)
        return False
    return True


def _ring_by_file(config: Config, job_id: str) -> None:
    # The transport creates a message and then fills it, so a worker could read it half-written; a move is whole.
    app = make_app(config)
    folder = broker_folder(config)
    with tempfile.TemporaryDirectory(dir=folder / "outbox") as outbox:
        _send(make_app(config, outbox=Path(outbox)), job_id)
        for message in Path(outbox).glob("*.msg"):
            message.rename(folder / "queue" / message.name)
    app.close()


def _send(app: Celery, job_id: str) -> None:
    with app.connection_for_write() as connection:
        # The workers declare the queues. A bell before the first worker may drop; the dispatcher rings again.
        app.send_task(TASKS[kind_of(job_id)], args=(job_id,), connection=connection, retry=False, declare=[])
    app.close()
