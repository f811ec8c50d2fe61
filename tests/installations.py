"""Installations for tests: a data home of their own, on SQLite and on PostgreSQL, with short times.

A service that a test needs and that cannot be reached is a reason to skip on a laptop, and a failure under CI.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text

from engine.settings import RunSettings
from store import jobs, runs
from store.config import Config
from store.database import Database
from store.schema import upgrade
from store.tables import Table

POSTGRES = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/test")
REDIS = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/9")
RABBITMQ = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")
FAKE_ENGINE = Path(__file__).parent / "workers" / "fake_engine.py"

SHORT_TIMES: dict[str, Any] = {
    # A busy machine may leave a thread waiting for seconds.
    "lease_seconds": 8.0,
    "heartbeat_seconds": 0.3,
    "heartbeat_loss_seconds": 5.0,
    "reap_seconds": 0.3,
    "dispatch_seconds": 0.4,
    "poll_seconds": 0.03,
    "peek_seconds": 0.1,
    "stop_grace_seconds": 5.0,
}


def fake_engine(*flags: str) -> tuple[str, ...]:
    """The command of an engine that misbehaves as told."""
    return (sys.executable, str(FAKE_ENGINE), *flags)


def make_config(home: Path, **changes: Any) -> Config:
    """An installation with short times and a fake engine, on SQLite unless told otherwise."""
    return Config(**{"home": home, "engine_command": fake_engine(), **SHORT_TIMES, **changes})


def environment_of(config: Config) -> dict[str, str]:
    """The environment in which a process of its own finds the same installation."""
    own = {f"PALATE_{name.upper()}": value for name, value in config.model_dump(mode="json").items()}
    own["PALATE_DATABASE_URL"], own["PALATE_BROKER_URL"] = config.database, config.broker
    own["PALATE_MODEL_FOLDERS"] = os.pathsep.join(own["PALATE_MODEL_FOLDERS"])
    for name in ("PALATE_HUB_MODELS", "PALATE_HUB_PUSH"):
        own[name] = " ".join(own[name]) or "none"
    command = ", ".join(f'"{word}"' for word in config.engine_command)
    own["PALATE_ENGINE_COMMAND"] = f"[{command}]"
    return {**os.environ, **{name: str(value) for name, value in own.items()}}


def require(name: str, host: str, port: int) -> None:
    """Skip, or under CI fail, if nothing listens there."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not reachable at {host}:{port}, and under CI it must be.")
        pytest.skip(f"{name} is not reachable at {host}:{port}.")


@contextmanager
def postgres_schema() -> Iterator[str]:
    """The URL of an empty schema of its own, dropped at the end."""
    require("PostgreSQL", "127.0.0.1", 5432)
    schema = f"palate_{secrets.token_hex(4)}"
    engine = create_engine(POSTGRES)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        yield f"{POSTGRES}?options=-csearch_path%3D{schema}&application_name={schema}"
    finally:
        with engine.begin() as connection:
            connection.execute(text("SET client_min_messages = warning"))
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        engine.dispose()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """An installation on SQLite."""
    return make_config(tmp_path / "home")


@pytest.fixture
def database(config: Config) -> Iterator[Database]:
    """The migrated database of `config`."""
    upgrade(config)
    opened = Database(config)
    yield opened
    opened.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Config]:
    """An installation on each of the databases, with no tables yet."""
    if request.param == "sqlite":
        yield make_config(tmp_path / "home")
    else:
        with postgres_schema() as url:
            yield make_config(tmp_path / "home", database_url=SecretStr(url))


@pytest.fixture(scope="module")
def migrated_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a schema with all tables; migrating is slow, emptying is not."""
    with postgres_schema() as url:
        upgrade(make_config(tmp_path_factory.mktemp("postgres"), database_url=SecretStr(url)))
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def either_config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Config]:
    """An installation on each of the databases, migrated and empty."""
    if request.param == "sqlite":
        config = make_config(tmp_path / "home")
        upgrade(config)
    else:
        url = request.getfixturevalue("migrated_postgres")
        config = make_config(tmp_path / "home", database_url=SecretStr(url))
        engine = create_engine(url)
        with engine.begin() as connection:
            names = ", ".join(f'"{table.name}"' for table in Table.metadata.sorted_tables)
            connection.execute(text(f"TRUNCATE {names}"))
        engine.dispose()
    yield config


@pytest.fixture
def either_database(either_config: Config) -> Iterator[Database]:
    """The database of `either_config`."""
    opened = Database(either_config)
    yield opened
    opened.dispose()


def small_settings(**changes: Any) -> RunSettings:
    """A run of 12 iterations, a checkpoint every 4, samples every 3."""
    return RunSettings.model_validate(
        {"iterations": 12, "checkpoints": {"every": 4}, "evaluation": {"every": 3}, **changes}
    )


def queue_run(database: Database, prompt_set_id: str | None = None, **changes: Any) -> tuple[str, str]:
    """A queued run; returns its id and its job's."""
    with database.write() as session:
        run = runs.create_run(session, name="A run", settings=small_settings(**changes), prompt_set_id=prompt_set_id)
        return run.id, runs.job_of(session, run.id)


def claim_run(database: Database, config: Config, job_id: str) -> jobs.Lease:
    """A lease on a queued job."""
    with database.write() as session:
        lease = jobs.claim(session, job_id, "a worker", config.lease_seconds)
    assert lease is not None
    return lease
