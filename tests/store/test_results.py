import math

import pytest

from engine.events import CheckpointSaved, IterationDone, PhaseSeconds, SampleImage, SamplesDrawn, Started
from store import jobs, results, runs
from store.config import Config
from store.database import Database
from store.files import OutsideError
from store.jobs import Lease
from tests.installations import claim_run, queue_run


def started(step: int) -> Started:
    return Started(time=1.0, step=step, iterations=12, device="cpu", versions={})


def iteration(step: int, **changes: object) -> IterationDone:
    return IterationDone.model_validate(
        {
            "time": float(step), "step": step, "rewards": {"vividness": step / 10}, "loss": 0.1, "grad_norm": 1.0,
            "spreads": {"vividness": 0.05, "gone": math.nan}, "ratio_drift": 0.0, "clipped_share": 0.5,
            "window_start": 3, "num_forwards": 25, "num_trained_steps": 4,
            "seconds": PhaseSeconds(sample=1.0, decode=2.0, score=3.0, train=4.0), "eta_seconds": 60.0, **changes,
        }
    )  # fmt: skip


def samples(step: int, num_images: int = 2, path: str = "samples/x.png") -> SamplesDrawn:
    images = tuple(
        SampleImage(index=i, prompt=f"p{i}", seed=2**40 + i, path=path, rewards={"vividness": 0.5})
        for i in range(num_images)
    )
    return SamplesDrawn(
        time=1.0, step=step, images=images, rewards={"vividness": 0.5}, metrics={"all_correct": 0.3}, seconds=2.0
    )


def saved(step: int) -> CheckpointSaved:
    return CheckpointSaved(time=1.0, step=step, path=f"checkpoints/step-{step:06d}", num_bytes=2**40)


def record_all(database: Database, lease: Lease, first: int, last: int) -> None:
    with database.write() as session:
        results.record_started(session, lease, started(first))
        for step in range(first + 1, last + 1):
            results.record_iteration(session, lease, iteration(step))
            if step % 3 == 0:
                results.record_samples(session, lease, samples(step))
            if step % 4 == 0:
                results.record_checkpoint(session, lease, saved(step))


@pytest.fixture
def lease(either_database: Database, either_config: Config) -> Lease:
    _, job_id = queue_run(either_database)
    return claim_run(either_database, either_config, job_id)


def test_rows_come_back_as_they_were_said(either_database: Database, lease: Lease) -> None:
    with either_database.write() as session:
        results.record_started(session, lease, started(0))
        results.record_samples(session, lease, samples(0))
        results.record_iteration(session, lease, iteration(1))
        results.record_checkpoint(session, lease, saved(1))
        results.record_log(session, lease, "hello", number=4, level="warning", time=5.0)
    with either_database.read() as session:
        (row,) = results.metrics_of(session, lease.run_id)
        assert (row.step, row.rewards, row.loss, row.train_seconds) == (1, {"vividness": 0.1}, 0.1, 4.0)
        assert row.spreads == {"vividness": 0.05}
        assert results.metrics_of(session, lease.run_id, after_step=1) == []
        (step,) = results.sample_steps_of(session, lease.run_id)
        assert (step.step, step.rewards, step.metrics) == (0, {"vividness": 0.5}, {"all_correct": 0.3})
        drawn = results.samples_of(session, lease.run_id, step=0)
        assert [(row.index, row.prompt, row.seed) for row in drawn] == [(0, "p0", 2**40), (1, "p1", 2**40 + 1)]
        assert drawn[0].path == f"runs/{lease.run_id}/1/samples/x.png"
        assert results.get_sample(session, drawn[1].id) == drawn[1]
        assert results.get_sample(session, drawn[1].id + 1000) is None
        (checkpoint,) = results.checkpoints_of(session, lease.run_id)
        assert (checkpoint.step, checkpoint.num_bytes) == (1, 2**40)
        assert results.log_tail(session, lease.run_id) == [results.LogRow(5.0, "warning", "hello")]
        (summary,) = runs.list_runs(session)
        assert (summary.step, summary.rewards, summary.eta_seconds) == (1, {"vividness": 0.1}, 60.0)


def test_a_resume_voids_what_came_after(either_database: Database, either_config: Config, lease: Lease) -> None:
    record_all(either_database, lease, 0, 7)
    with either_database.write() as session:
        for number, step in enumerate((None, 4, 5, None), start=1):
            results.record_log(session, lease, f"of {step}", number=number, step=step)
        jobs.release(session, lease)
    again = claim_run(either_database, either_config, lease.job_id)
    with either_database.write() as session:
        results.record_started(session, again, started(4))
    with either_database.read() as session:
        assert [row.step for row in results.metrics_of(session, lease.run_id)] == [1, 2, 3, 4]
        assert [row.step for row in results.sample_steps_of(session, lease.run_id)] == [3]
        assert {row.step for row in results.samples_of(session, lease.run_id)} == {3}
        assert [row.step for row in results.checkpoints_of(session, lease.run_id)] == [4]
        assert [row.text for row in results.log_tail(session, lease.run_id)] == ["of None", "of 4", "of None"]
    record_all(either_database, again, 4, 12)
    with either_database.read() as session:
        assert [row.step for row in results.metrics_of(session, lease.run_id)] == list(range(1, 13))
        assert [row.step for row in results.sample_steps_of(session, lease.run_id)] == [3, 6, 9, 12]
        assert [row.epoch for row in results.checkpoints_of(session, lease.run_id)] == [2, 2, 1]


def test_the_same_line_twice_is_one_row(either_database: Database, lease: Lease) -> None:
    for _ in range(2):
        with either_database.write() as session:
            results.record_iteration(session, lease, iteration(1))
            results.record_samples(session, lease, samples(1))
            results.record_checkpoint(session, lease, saved(1))
            results.record_log(session, lease, "once", number=1)
    with either_database.read() as session:
        assert results.num_metrics_of(session, lease.run_id) == 1
        assert len(results.samples_of(session, lease.run_id)) == 2
        assert len(results.checkpoints_of(session, lease.run_id)) == 1
        assert len(results.log_tail(session, lease.run_id)) == 1


def test_an_images_id_is_never_used_again(either_database: Database, lease: Lease) -> None:
    """A browser may hold the image of an id for as long as it likes."""
    seen: set[int] = set()
    for _ in range(3):
        with either_database.write() as session:
            results.record_samples(session, lease, samples(1))
            ids = {row.id for row in results.samples_of(session, lease.run_id)}
        assert not ids & seen
        seen |= ids


def test_what_is_not_finite_or_not_text(either_database: Database, lease: Lease) -> None:
    odd = iteration(1, loss=math.nan, grad_norm=math.inf, rewards={"a": math.nan, "b": 1.0}, eta_seconds=math.nan)
    with either_database.write() as session:
        results.record_iteration(session, lease, odd)
        results.record_log(session, lease, "a\x00b\ud800c" + "x" * 9_000, number=1)
    with either_database.read() as session:
        (row,) = results.metrics_of(session, lease.run_id)
        assert (row.loss, row.grad_norm, row.eta_seconds, row.rewards) == (None, None, None, {"b": 1.0})
        (line,) = results.log_tail(session, lease.run_id)
        assert line.text.startswith("ab?cx")
        assert len(line.text) == results.MAX_LOG_CHARACTERS


def test_an_image_elsewhere_is_refused(either_database: Database, lease: Lease) -> None:
    with pytest.raises(OutsideError), either_database.write() as session:
        results.record_samples(session, lease, samples(1, path="../../../../etc/passwd"))
    with either_database.read() as session:
        assert results.sample_steps_of(session, lease.run_id) == []


def test_the_log_ends_with_its_newest_lines(either_database: Database, lease: Lease) -> None:
    with either_database.write() as session:
        for number in range(1, 6):
            results.record_log(session, lease, str(number), number=number)
    with either_database.read() as session:
        assert [line.text for line in results.log_tail(session, lease.run_id, 3)] == ["3", "4", "5"]
