import time

import pytest

from store import jobs, results, runs
from store.config import Config
from store.database import Database
from store.jobs import Fenced, Lease
from store.runs import RunDetail
from tests.installations import claim_run, queue_run


def detail(database: Database, run_id: str) -> RunDetail:
    with database.read() as session:
        found = runs.get_run(session, run_id)
    assert found is not None
    return found


def expire(database: Database, lease: Lease) -> None:
    """Let the lease run out at once."""
    with database.write() as session:
        assert jobs.heartbeat(session, lease, -1.0) is not None


def test_a_claim_is_exclusive(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    assert (lease.run_id, lease.kind, lease.epoch, lease.attempt, lease.step) == (run_id, "train", 1, 1, 0)
    with either_database.write() as session:
        assert jobs.claim(session, job_id, "another", 60) is None
        assert jobs.claim(session, "train-nothing", "another", 60) is None
    found = detail(either_database, run_id)
    assert (found.state, found.owner, found.attempt) == ("running", "a worker", 1)
    assert found.started_at is not None


def test_an_expired_lease_is_taken_over_and_its_holder_fenced(either_database: Database, either_config: Config) -> None:
    _, job_id = queue_run(either_database)
    old = claim_run(either_database, either_config, job_id)
    expire(either_database, old)
    new = claim_run(either_database, either_config, job_id)
    assert (new.epoch, new.attempt) == (2, 2)
    with either_database.write() as session:
        assert jobs.heartbeat(session, old, 60) is None
        assert jobs.peek(session, old) is None
        assert jobs.peek(session, new) is not None
    for write in (
        lambda session: jobs.guard(session, old),
        lambda session: jobs.finish(session, old),
        lambda session: jobs.cancelled(session, old),
        lambda session: jobs.release(session, old),
        lambda session: jobs.fail(session, old, "x", retry=True),
        lambda session: results.record_log(session, old, "x", number=1),
    ):
        with pytest.raises(Fenced), either_database.write() as session:
            write(session)
    with either_database.write() as session:
        jobs.guard(session, new, step=3)
        jobs.finish(session, new)
    assert detail(either_database, new.run_id).state == "done"


def test_a_heartbeat_extends(either_database: Database, either_config: Config) -> None:
    _, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    expire(either_database, lease)
    with either_database.write() as session:
        assert jobs.heartbeat(session, lease, 60) is not None
        assert jobs.reap(session) == []
        assert jobs.claim(session, job_id, "another", 60) is None


def test_a_release_costs_no_attempt(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    for _ in range(5):
        lease = claim_run(either_database, either_config, job_id)
        with either_database.write() as session:
            jobs.release(session, lease)
    assert (detail(either_database, run_id).attempt, detail(either_database, run_id).epoch) == (0, 5)


def test_failures_are_tried_again_three_times(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    for expected in ("queued", "queued", "failed"):
        lease = claim_run(either_database, either_config, job_id)
        with either_database.write() as session:
            jobs.fail(session, lease, "It broke.", retry=True)
        assert detail(either_database, run_id).state == expected
    found = detail(either_database, run_id)
    assert found.error == "It broke."
    assert found.finished_at is not None
    with either_database.write() as session:
        assert jobs.claim(session, job_id, "another", 60) is None


def test_a_mistake_is_not_tried_again(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    with either_database.write() as session:
        jobs.fail(session, lease, "The prompts are in no language it knows.", retry=False)
    assert detail(either_database, run_id).state == "failed"


def test_the_reaper(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    for attempt in (1, 2, 3):
        lease = claim_run(either_database, either_config, job_id)
        with either_database.write() as session:
            assert jobs.reap(session) == []
        expire(either_database, lease)
        with either_database.write() as session:
            assert jobs.reap(session) == ([job_id] if attempt < 3 else [])
        with pytest.raises(Fenced), either_database.write() as session:
            jobs.finish(session, lease)
    found = detail(either_database, run_id)
    assert found.state == "failed"
    assert found.error is not None
    assert "lost each time" in found.error


def test_cancel_in_every_state(either_database: Database, either_config: Config) -> None:
    def ask(run_id: str) -> str:
        with either_database.write() as session:
            runs.request_cancel(session, run_id)
        return detail(either_database, run_id).state

    queued, _ = queue_run(either_database)
    assert ask(queued) == "cancelled"
    assert ask(queued) == "cancelled"

    running, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    assert ask(running) == "running"
    assert detail(either_database, running).cancel_requested
    with either_database.write() as session:
        beat = jobs.heartbeat(session, lease, 60)
        assert beat is not None
        assert beat.cancel_requested
        jobs.cancelled(session, lease)
    assert detail(either_database, running).state == "cancelled"

    # A worker that releases, fails or dies does not bring a cancelled run back.
    for end in ("release", "fail", "reap"):
        run_id, job_id = queue_run(either_database)
        lease = claim_run(either_database, either_config, job_id)
        ask(run_id)
        if end == "reap":
            expire(either_database, lease)
        with either_database.write() as session:
            if end == "release":
                jobs.release(session, lease)
            elif end == "fail":
                jobs.fail(session, lease, "x", retry=True)
            else:
                assert jobs.reap(session) == []
        assert detail(either_database, run_id).state == "cancelled"

    done, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    with either_database.write() as session:
        jobs.finish(session, lease)
    assert ask(done) == "done"


def test_a_run_that_finished_before_its_cancel_is_done(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    with either_database.write() as session:
        runs.request_cancel(session, run_id)
        jobs.finish(session, lease)
    assert detail(either_database, run_id).state == "done"


def test_a_retry_starts_with_all_attempts_and_fences_the_past(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    with pytest.raises(ValueError, match="Only a run that failed or was cancelled"), either_database.write() as session:
        runs.retry_run(session, run_id)
    with either_database.write() as session:
        jobs.fail(session, lease, "x", retry=False)
    with either_database.write() as session:
        assert runs.retry_run(session, run_id) == job_id
    found = detail(either_database, run_id)
    assert (found.state, found.attempt, found.error, found.cancel_requested) == ("queued", 0, None, False)
    again = claim_run(either_database, either_config, job_id)
    assert again.epoch > lease.epoch


def test_the_queue_is_in_order(either_database: Database, either_config: Config) -> None:
    made = []
    for _ in range(3):
        made.append(queue_run(either_database))
        time.sleep(0.005)
    with either_database.read() as session:
        assert [job.id for job in jobs.queued_jobs(session)] == [job_id for _, job_id in made]
        assert [job.id for job in jobs.queued_jobs(session, "train", limit=1)] == [made[0][1]]
        assert jobs.queued_jobs(session, "export") == []
    assert [detail(either_database, run_id).queue_position for run_id, _ in made] == [1, 2, 3]
    claim_run(either_database, either_config, made[0][1])
    assert [detail(either_database, run_id).queue_position for run_id, _ in made] == [None, 1, 2]


def test_ids_name_their_kind() -> None:
    assert jobs.kind_of("train-0a") == "train"
    assert jobs.kind_of("export-0a") == "export"
    with pytest.raises(ValueError, match="is no job's id"):
        jobs.kind_of("rm -rf /")


def test_the_workers_clock_does_not_matter(
    either_database: Database, either_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    for wrong in (-3600.0, 3600.0):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: real() + wrong)
        run_id, job_id = queue_run(either_database)
        lease = claim_run(either_database, either_config, job_id)
        with either_database.write() as session:
            assert jobs.reap(session) == []
            assert jobs.heartbeat(session, lease, 60) is not None
        started = detail(either_database, run_id).started_at
        assert started is not None
        assert abs(started - real()) < 60
