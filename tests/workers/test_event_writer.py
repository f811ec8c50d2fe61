import time
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from engine.events import Event, Finished, IterationDone, Message, PhaseSeconds, Started
from store import results
from store.config import Config
from store.database import Database
from store.jobs import Lease
from tests.installations import claim_run, queue_run
from workers.event_writer import EventWriter
from workers.launch import TrainingLaunch


@pytest.fixture
def lease(config: Config, database: Database) -> Lease:
    _, job_id = queue_run(database)
    return claim_run(database, config, job_id)


def write(folder: Path, *events: Event) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(event.model_dump_json() + "\n" for event in events)


def iteration(step: int) -> IterationDone:
    return IterationDone(
        time=1.0, step=step, rewards={}, loss=0.0, grad_norm=0.0, ratio_drift=0.0, clipped_share=0.0, window_start=0,
        seconds=PhaseSeconds(sample=0, decode=0, score=0, train=0), num_forwards=1, num_trained_steps=1, eta_seconds=0,
    )  # fmt: skip


def make_writer(config: Config, database: Database, lease: Lease, folder: Path) -> EventWriter:
    return EventWriter(config, database, lease, TrainingLaunch((), folder, (), keep_checkpoints=3))


def test_events_become_rows(config: Config, database: Database, lease: Lease, tmp_path: Path) -> None:
    writer = make_writer(config, database, lease, tmp_path)
    writer.write_new()
    assert writer.up_to_date
    write(tmp_path, Started(time=1.0, step=0, iterations=2, device="cpu", versions={}), iteration(1), iteration(2))
    write(tmp_path, Message(time=1.0, level="error", text="No prompts."), Finished(time=1.0, step=2, outcome="failed"))
    writer.write_new()
    assert not writer.up_to_date
    writer.write_new()
    assert writer.up_to_date
    assert writer.last_error == "No prompts."
    assert writer.finished is not None
    with database.read() as session:
        assert [row.step for row in results.metrics_of(session, lease.run_id)] == [1, 2]


def test_a_warning_of_an_iteration_that_is_done_again_is_told_once(
    config: Config, database: Database, lease: Lease, tmp_path: Path
) -> None:
    warning = Message(time=1.0, level="warning", text="Iteration 2: the gradient is exploding.", step=2)
    again = Started(time=1.0, step=1, iterations=2, device="cpu", versions={})
    write(tmp_path, iteration(1), warning, again, warning)
    make_writer(config, database, lease, tmp_path).write_new()
    with database.read() as session:
        assert [line.text for line in results.log_tail(session, lease.run_id)] == [warning.text]


def test_a_batch_that_was_not_committed_is_written_again_whole(
    config: Config, database: Database, lease: Lease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(config, database, lease, tmp_path)
    write(tmp_path, iteration(1), iteration(2), Message(time=1.0, text="once"))
    real = results.record_log

    def away(*arguments: object, **named: object) -> None:
        raise OperationalError("INSERT", {}, Exception("the database is away"))

    monkeypatch.setattr(results, "record_log", away)
    for _ in range(2):
        with pytest.raises(OperationalError):
            writer.write_new()
    with database.read() as session:
        assert results.metrics_of(session, lease.run_id) == []
    monkeypatch.setattr(results, "record_log", real)
    write(tmp_path, iteration(3))
    writer.write_new()
    writer.write_new()
    with database.read() as session:
        assert [row.step for row in results.metrics_of(session, lease.run_id)] == [1, 2, 3]
        assert [line.text for line in results.log_tail(session, lease.run_id)] == ["once"]


def test_a_silent_engine_is_reported_once(config: Config, database: Database, lease: Lease, tmp_path: Path) -> None:
    writer = make_writer(config.model_copy(update={"stall_seconds": 0.05}), database, lease, tmp_path)
    writer.write_new()
    time.sleep(0.06)
    for _ in range(3):
        writer.write_new()
    with database.read() as session:
        (line,) = results.log_tail(session, lease.run_id)
    assert line.level == "warning"
    assert line.text.startswith("Nothing heard from the engine")
