"""Many at once: a thousand claims, a held write lock, a database whose connections are cut."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from store import jobs
from store.config import Config
from store.database import Database
from store.jobs import Fenced, Lease
from tests.faults.workers_at_large import assert_whole, detail, engines_of, wait_for_step
from tests.installations import POSTGRES, claim_run, fake_engine, make_config, queue_run
from workers.supervisor import Supervisor


def test_a_thousand_racing_claims_have_one_winner_each(either_database: Database, either_config: Config) -> None:
    job_ids = [queue_run(either_database)[1] for _ in range(10)]
    others = [Database(either_config) for _ in range(3)]
    databases = [either_database, *others]

    def attempt(number: int) -> Lease | None:
        with databases[number % 4].write() as session:
            return jobs.claim(session, job_ids[number % 10], f"worker {number}", 1e6)

    with ThreadPoolExecutor(16) as pool:
        leases = [lease for lease in pool.map(attempt, range(1000)) if lease is not None]
    for database in others:
        database.dispose()
    assert sorted(lease.job_id for lease in leases) == sorted(job_ids)
    assert all(lease.epoch == 1 for lease in leases)


def test_racing_claims_of_an_expired_lease_have_one_winner(either_database: Database, either_config: Config) -> None:
    _, job_id = queue_run(either_database)
    old = claim_run(either_database, either_config, job_id)
    with either_database.write() as session:
        jobs.heartbeat(session, old, -1.0)

    def attempt(number: int) -> Lease | None:
        with either_database.write() as session:
            if number % 10 == 9:
                jobs.reap(session)
            return jobs.claim(session, job_id, f"worker {number}", 1e6)

    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(attempt, range(40)) if lease is not None]
    assert len(leases) == 1
    assert leases[0].epoch > old.epoch


def test_a_write_lock_held_for_long_is_waited_for(config: Config, database: Database) -> None:
    run_id, job_id = queue_run(database)
    lease = claim_run(database, config, job_id)
    holding, released = threading.Event(), []

    def hold() -> None:
        connection = sqlite3.connect(config.home / "palate.db", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        holding.set()
        time.sleep(4)
        released.append(time.monotonic())
        connection.execute("COMMIT")
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    assert detail(database, run_id).state == "running"  # a reader does not wait
    assert not released
    with database.write() as session:
        assert jobs.heartbeat(session, lease, 60) is not None
        assert released
    holder.join()


def test_connections_cut_in_mid_run_lose_nothing(migrated_postgres: str, tmp_path: Path) -> None:
    """What a restarted PostgreSQL looks like from here."""
    config = make_config(
        tmp_path / "home", database_url=SecretStr(migrated_postgres),
        engine_command=fake_engine("--delay", "0.1"),
    )  # fmt: skip
    database = Database(config)
    run_id, job_id = queue_run(database, iterations=60)
    lease = claim_run(database, config, job_id)
    name = migrated_postgres.rpartition("application_name=")[2]
    outside = create_engine(POSTGRES)
    ended = []

    def cut() -> None:
        watching = Database(config.model_copy(update={"database_url": SecretStr(migrated_postgres + "_watch")}))
        for step in (5, 20, 40):
            wait_for_step(watching, run_id, step)
            with outside.begin() as connection:
                killing = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = :name"
                ended.append(connection.execute(text(killing), {"name": name}).scalar())
        watching.dispose()

    cutter = threading.Thread(target=cut)
    cutter.start()
    Supervisor(config, database, lease, threading.Event()).run()
    cutter.join()
    assert sum(ended) >= 3
    assert detail(database, run_id).state == "done"
    assert_whole(config, database, run_id)
    database.dispose()
    outside.dispose()


class FailingDatabase(Database):
    """A database that stops answering when told to."""

    away = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.answer()
        with super().write() as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        self.answer()
        with super().read() as session:
            yield session

    def answer(self) -> None:
        if self.away:
            raise OperationalError("SELECT", {}, Exception("the server is away"))


def test_a_database_away_for_too_long_ends_the_engine(config: Config, database: Database) -> None:
    """The lease may be somebody else's by then, so the engine must not go on."""
    config = config.model_copy(
        update={"heartbeat_loss_seconds": 1.5, "engine_command": fake_engine("--delay", "0.1")}
    )
    run_id, job_id = queue_run(database, iterations=5000)
    lease = claim_run(database, config, job_id)
    failing = FailingDatabase(config)

    def go_away() -> None:
        wait_for_step(database, run_id, 3)
        failing.away = True

    going = threading.Thread(target=go_away)
    going.start()
    with pytest.raises(Fenced):
        Supervisor(config, failing, lease, threading.Event()).run()
    going.join()
    assert engines_of(config) == []
    assert detail(database, run_id).state == "running"  # until somebody finds its lease expired
    failing.dispose()


def test_a_database_away_for_a_moment_costs_nothing(config: Config, database: Database) -> None:
    config = config.model_copy(update={"engine_command": fake_engine("--delay", "0.05")})
    run_id, job_id = queue_run(database, iterations=60)
    lease = claim_run(database, config, job_id)
    failing = FailingDatabase(config)

    def flicker() -> None:
        for step in (3, 15, 30):
            wait_for_step(database, run_id, step)
            failing.away = True
            time.sleep(0.4)
            failing.away = False
        failing.away = False

    flickering = threading.Thread(target=flicker)
    flickering.start()
    Supervisor(config, failing, lease, threading.Event()).run()
    flickering.join()
    assert_whole(config, database, run_id)
    failing.dispose()
