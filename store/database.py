"""Connections, transactions and the database's own clock, the same on SQLite and PostgreSQL.

SQLite: write transactions begin with BEGIN IMMEDIATE, so that two of them queue instead of failing when one wants to
turn its read into a write; reads begin plainly and never wait for a writer (WAL).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, Double, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from store.config import Config


class now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock: seconds since the epoch. Workers' clocks may be wrong; there is only one of these."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **_: Any) -> str:
    # Julian days; 2440587.5 is 1970-01-01. (`unixepoch('subsec')` needs SQLite 3.42.)
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **_: Any) -> str:
    # `now()` stands still in a transaction, and a transaction may have waited for a lock.
    return "extract(epoch from clock_timestamp())::double precision"


NOW = now()


class Database:
    """One pool of connections; made without connecting, one a process."""

    def __init__(self, config: Config) -> None:
        self.engine = make_engine(config.database)
        self._readers = self.engine.execution_options(readonly=True)
        # Waiting for SQLite's lock is a lottery that a thread may lose for long; threads of one process queue here.
        sqlite = self.engine.dialect.name == "sqlite"
        self._turn: AbstractContextManager[object] = threading.RLock() if sqlite else nullcontext()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back if anything is raised."""
        with self._turn, Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment of the database and waits for no writer; it must not write."""
        with Session(self._readers, expire_on_commit=False) as session:
            yield session

    def dispose(self) -> None:
        """Close the connections."""
        self.engine.dispose()


def make_engine(url: str) -> Engine:
    """A SQLAlchemy engine for a SQLite or PostgreSQL URL; connects on first use."""
    if not url.startswith("sqlite"):
        # A pre-ping finds connections that died with a restarted server before a transaction does.
        engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
        event.listen(engine, "connect", _prepare_postgresql)
        return engine
    engine = create_engine(url)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own
    cursor = connection.cursor()
    # The patience comes first: switching to WAL may itself have to wait.
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prepare_postgresql(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # A statement that hangs must fail while its lease can still be saved.
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SET statement_timeout = '30s'")
    cursor.close()
    connection.autocommit = False


def _begin_sqlite(connection: Connection) -> None:
    readonly = connection.get_execution_options().get("readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
