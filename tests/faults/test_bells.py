"""The doorbell lost, rung ten times over, and not there at all."""

import itertools
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from store.config import Config
from store.database import Database
from store.tables import Job
from tests.faults.workers_at_large import assert_whole, detail, wait_for_state, worker
from tests.installations import RABBITMQ, REDIS, fake_engine, queue_run, require
from workers.celery_app import broker_folder
from workers.queue import ring


def test_a_lost_bell_and_a_bell_rung_ten_times(config: Config, database: Database, tmp_path: Path) -> None:
    silent, _ = queue_run(database)
    loud, loud_job = queue_run(database)
    assert all(ring(config, loud_job) for _ in range(10))
    assert all(ring(config, f"train-{number:012x}") for number in range(3))  # jobs that do not exist
    with worker(config, tmp_path / "log"):
        for run_id in (silent, loud):
            found = wait_for_state(database, run_id, "done")
            assert (found.epoch, found.attempt) == (1, 1)
    for run_id in (silent, loud):
        assert_whole(config, database, run_id)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_bells_in_a_row_train_one_at_a_time(config: Config, database: Database, tmp_path: Path) -> None:
    made = [queue_run(database) for _ in range(3)]
    for _, job_id in made:
        ring(config, job_id)
    with worker(config, tmp_path / "log"):
        for run_id, _ in made:
            wait_for_state(database, run_id, "done")
    with database.read() as session:
        spans = session.execute(select(Job.started_at, Job.finished_at).order_by(Job.started_at)).all()
    assert len(spans) == 3
    assert all(earlier.finished_at <= later.started_at for earlier, later in itertools.pairwise(spans))


def test_a_message_that_is_no_bell_does_no_harm(config: Config, database: Database, tmp_path: Path) -> None:
    run_id, job_id = queue_run(database)
    ring(config, job_id)
    queue = broker_folder(config) / "queue"
    (message,) = queue.iterdir()
    text = message.read_text()
    (queue / "0_a.train.msg").write_text(text.replace("palate.train", "os.system"))
    (queue / "1_b.train.msg").write_text(text.replace("application/json", "application/x-python-serialize"))
    with worker(config, tmp_path / "log"):
        wait_for_state(database, run_id, "done")


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_other_brokers(config: Config, database: Database, tmp_path: Path, name: str) -> None:
    url = REDIS if name == "redis" else RABBITMQ
    host, port = ("127.0.0.1", 6379) if name == "redis" else ("127.0.0.1", 5672)
    require(name, host, port)
    config = config.model_copy(update={"broker_url": SecretStr(url), "dispatch_seconds": 30.0})
    with worker(config, tmp_path / "log"):
        # The first declares the queues and may only be found by the round; the second must be the bell's doing.
        first, job_id = queue_run(database)
        ring(config, job_id)
        wait_for_state(database, first, "done")
        begun = time.monotonic()
        second, job_id = queue_run(database)
        assert ring(config, job_id)
        assert wait_for_state(database, second, "done").epoch == 1
        assert time.monotonic() - begun < 25
    for run_id in (first, second):
        assert_whole(config, database, run_id)


def test_a_broker_that_comes_late(config: Config, database: Database, tmp_path: Path) -> None:
    """The worker waits for its broker, the job for the worker; nobody fails."""
    if shutil.which("redis-server") is None:
        require("a redis-server of our own", "127.0.0.1", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = config.model_copy(update={"broker_url": SecretStr(f"redis://127.0.0.1:{port}/0")})
    run_id, job_id = queue_run(database)
    assert not ring(config, job_id)
    with worker(config, tmp_path / "log"):
        time.sleep(4)
        assert detail(database, run_id).state == "queued"
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for_state(database, run_id, "done")
        finally:
            server.kill()
            server.wait()
    assert_whole(config, database, run_id)


def test_a_light_job_does_not_wait_for_training(config: Config, database: Database, tmp_path: Path) -> None:
    from store import jobs, results, runs
    from tests.faults.workers_at_large import wait_for, wait_for_step

    config = config.model_copy(update={"engine_command": fake_engine("--delay", "0.2")})
    run_id, job_id = queue_run(database, iterations=400)
    ring(config, job_id)
    with worker(config, tmp_path / "log"):
        wait_for_step(database, run_id, 5)
        with database.write() as session:
            export = runs.request_export(session, run_id)
        ring(config, export.job_id)

        def exported() -> bool:
            with database.read() as session:
                return results.exports_of(session, run_id)[0].state == "done"

        wait_for(exported, "the export")
        assert detail(database, run_id).state == "running"
        with database.read() as session:
            assert jobs.queued_jobs(session) == []
        with database.write() as session:
            runs.request_cancel(session, run_id)
        wait_for_state(database, run_id, "cancelled")


def test_a_worker_that_cannot_start_says_why(config: Config) -> None:
    from tests.installations import environment_of

    environment = {**environment_of(config), "PALATE_DATABASE_URL": "postgresql+psycopg://me:canary@127.0.0.1:1/x"}
    ended = subprocess.run(
        [sys.executable, "-m", "workers"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2
    assert "The database cannot be opened" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "canary" not in ended.stderr + ended.stdout
