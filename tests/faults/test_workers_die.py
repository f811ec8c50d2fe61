"""Workers that are killed, frozen, told to stop or doubled, in the middle of a run."""

import signal
import time
from pathlib import Path

import pytest

from store import results
from store.config import Config
from store.database import Database
from tests.faults.workers_at_large import (
    assert_whole,
    detail,
    engines_of,
    wait_for,
    wait_for_state,
    wait_for_step,
    worker,
)
from tests.installations import fake_engine, queue_run


def slow_engine(config: Config, *flags: str) -> Config:
    return config.model_copy(update={"engine_command": fake_engine("--delay", "0.1", *flags)})


def test_a_killed_worker_takes_its_engine_along_and_another_finishes_the_run(
    either_config: Config, either_database: Database, tmp_path: Path
) -> None:
    config = slow_engine(either_config)
    run_id, _ = queue_run(either_database, iterations=60)
    with worker(config, tmp_path / "first.log") as first:
        wait_for_step(either_database, run_id, 13)
        assert len(engines_of(config)) == 1
        first.kill()
        first.wait()
        wait_for(lambda: engines_of(config) == [], "the engine to die with its worker", 10)
    assert detail(either_database, run_id).state == "running"
    with worker(config, tmp_path / "second.log"):
        found = wait_for_state(either_database, run_id, "done")
    assert (found.attempt, found.step) == (2, 60)
    assert found.epoch > 1
    assert_whole(config, either_database, run_id)
    with either_database.read() as session:
        log = [line.text for line in results.log_tail(session, run_id)]
    assert any("from the checkpoint of step" in line for line in log)


def test_sigterm_checkpoints_and_costs_no_attempt(config: Config, database: Database, tmp_path: Path) -> None:
    config = slow_engine(config)
    run_id, _ = queue_run(database, iterations=30)
    with worker(config, tmp_path / "first.log") as first:
        wait_for_step(database, run_id, 2)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
    found = detail(database, run_id)
    assert (found.state, found.attempt) == ("queued", 0)
    with database.read() as session:
        assert results.checkpoints_of(session, run_id)[0].step == found.step
    assert engines_of(config) == []
    with worker(config, tmp_path / "second.log"):
        wait_for_state(database, run_id, "done")
    assert_whole(config, database, run_id)


def test_a_worker_frozen_past_its_lease_is_fenced(config: Config, database: Database, tmp_path: Path) -> None:
    # The engine is in a session of its own, so it runs on while its worker is frozen: a zombie with a pen.
    config = slow_engine(config).model_copy(update={"lease_seconds": 3.0, "heartbeat_loss_seconds": 2.5})
    run_id, _ = queue_run(database, iterations=150)
    with worker(config, tmp_path / "frozen.log") as frozen:
        wait_for_step(database, run_id, 5)
        first_epoch = detail(database, run_id).epoch
        frozen.send_signal(signal.SIGSTOP)
        with worker(config, tmp_path / "second.log"):
            wait_for(lambda: detail(database, run_id).epoch >= first_epoch + 2, "the run to be taken over")
            wait_for_step(database, run_id, 9)
            frozen.send_signal(signal.SIGCONT)
            wait_for(lambda: "lease of job" in (tmp_path / "frozen.log").read_text()
                     or "no longer held" in (tmp_path / "frozen.log").read_text(), "the fence")
            wait_for_state(database, run_id, "done")
    assert_whole(config, database, run_id)
    with database.read() as session:
        assert {row.epoch for row in results.checkpoints_of(session, run_id)[:2]} == {detail(database, run_id).epoch}


@pytest.mark.slow
def test_workers_killed_again_and_again(either_config: Config, either_database: Database, tmp_path: Path) -> None:
    """Ten runs, a kill every few seconds, in whatever phase it meets."""
    config = either_config.model_copy(update={"lease_seconds": 6.0, "heartbeat_loss_seconds": 4.0})
    config = config.model_copy(update={"engine_command": fake_engine("--delay", "0.02")})
    made = [queue_run(either_database, iterations=30)[0] for _ in range(10)]
    with either_database.write() as session:
        from sqlalchemy import update

        from store.tables import Job

        session.execute(update(Job).values(max_attempts=100))
    for number in range(40):
        with worker(config, tmp_path / "log") as process:
            time.sleep(3.0 + 0.37 * (number % 7))
            process.kill()
        if all(detail(either_database, run_id).state == "done" for run_id in made):
            break
    for run_id in made:
        assert detail(either_database, run_id).state == "done"
        assert_whole(config, either_database, run_id)
    assert engines_of(config) == []
