import threading
import time

import pytest
from sqlalchemy import func, select, text

from store import presence
from store.config import Config
from store.database import NOW, Database
from store.tables import WorkerRow


def test_nothing_connects_before_it_must(config: Config) -> None:
    Database(config).dispose()
    assert not config.home.exists()


def test_the_clock_is_seconds_since_the_epoch(either_database: Database) -> None:
    with either_database.read() as session:
        then = session.scalar(select(NOW))
    assert then is not None
    assert abs(then - time.time()) < 5


def test_the_clock_moves_inside_a_transaction(either_database: Database) -> None:
    with either_database.write() as session:
        first = session.scalar(select(NOW))
        time.sleep(0.02)
        second = session.scalar(select(NOW))
    assert first is not None
    assert second is not None
    assert second > first


def test_a_raise_rolls_back(either_database: Database) -> None:
    with pytest.raises(RuntimeError), either_database.write() as session:
        presence.worker_seen(session, "w", host="h", device="cpu")
        raise RuntimeError
    with either_database.read() as session:
        assert session.scalar(select(func.count()).select_from(WorkerRow)) == 0


def test_sqlite_is_set_up(config: Config, database: Database) -> None:
    with database.read() as session:
        found = {name: session.scalar(text(f"PRAGMA {name}")) for name in
                 ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")}
    assert found == {"journal_mode": "wal", "busy_timeout": 30000, "synchronous": 1, "foreign_keys": 1}


def test_a_read_waits_for_no_writer(database: Database) -> None:
    with database.write() as session:
        presence.worker_seen(session, "w", host="h", device="cpu")
        begun = time.monotonic()
        with database.read() as other:
            assert other.scalar(select(func.count()).select_from(WorkerRow)) == 0
        assert time.monotonic() - begun < 5


def test_no_update_is_lost(either_database: Database) -> None:
    """Read, then write: the shape that loses updates, or fails with "locked", without BEGIN IMMEDIATE."""
    database = either_database
    with database.write() as session:
        session.add(WorkerRow(name="counter", host="0", device="cpu"))

    def count() -> None:
        for _ in range(8):
            with database.write() as session:
                row = session.scalars(select(WorkerRow).with_for_update()).one()
                row.host = str(int(row.host) + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.scalar(select(WorkerRow.host)) == "32"
