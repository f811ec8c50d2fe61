"""The Celery application: every queue, route and limit in one literal. A message is a job's id and nothing more.

The broker is a doorbell: a message may be lost, doubled or late without harm, because the database decides who works
on what. So messages are acknowledged at once, and no transport's redelivery is relied upon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import Celery

from store.config import Config
from store.jobs import JobKind

TASKS: dict[JobKind, str] = {"train": "palate.train", "export": "palate.export"}

SETTINGS: dict[str, Any] = {
    "task_queues": {"train": {}, "light": {}},
    "task_routes": {"palate.train": {"queue": "train"}, "palate.export": {"queue": "light"}},
    "task_default_queue": "light",
    "task_create_missing_queues": False,
    # JSON only: a message from a broker others can write to must never become an object.
    "accept_content": ["json"],
    "task_serializer": "json",
    "task_ignore_result": True,
    "task_acks_late": False,
    # One thread trains, the other answers bells and exports; nothing is reserved beyond them.
    "worker_pool": "threads",
    "worker_concurrency": 2,
    "worker_prefetch_multiplier": 1,
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "worker_hijack_root_logger": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": 4.0,
}

_LISTENING = {"redis": {"socket_connect_timeout": 4.0}, "rediss": {"socket_connect_timeout": 4.0}}


def make_app(config: Config, outbox: Path | None = None) -> Celery:
    """The application for a configuration; connects to nothing.

    `outbox`: with the filesystem broker, the folder this process writes messages to instead of the queue itself.
    """
    scheme = config.broker.partition("://")[0]
    # The host means nothing to the filesystem broker, but kombu warns if there is none.
    broker = "filesystem://localhost//" if scheme == "filesystem" else config.broker
    app = Celery("palate", broker=broker, set_as_current=False)
    app.conf.update(SETTINGS)
    if scheme == "filesystem":
        app.conf.broker_transport_options = _filesystem(config, outbox)
    else:
        app.conf.broker_transport_options = _LISTENING.get(scheme, {})
    return app


def broker_folder(config: Config) -> Path:
    """Where the filesystem broker keeps its messages."""
    return config.home / "broker"


def _filesystem(config: Config, outbox: Path | None) -> dict[str, Any]:
    folder = broker_folder(config)
    for name in ("queue", "processed", "control", "outbox"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(outbox or folder / "queue"),
        "processed_folder": str(folder / "processed"),
        "control_folder": str(folder / "control"),
        # Kept until the worker prunes them: otherwise they pass through the system's temporary folder.
        "store_processed": True,
        "polling_interval": 0.1,
    }
