"""A state machine over the lease: whatever order things happen in, the promises hold. On both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from engine.events import IterationDone, PhaseSeconds, Started
from store import jobs, results, runs
from store.config import Config
from store.database import Database
from store.jobs import Fenced, Lease
from store.tables import Job
from tests.installations import queue_run

MAX_ATTEMPTS = 3


def iteration(step: int, epoch: int) -> IterationDone:
    return IterationDone(
        time=1.0, step=step, rewards={"epoch": float(epoch)}, loss=0.0, grad_norm=0.0, ratio_drift=0.0,
        clipped_share=0.0, window_start=0, seconds=PhaseSeconds(sample=0, decode=0, score=0, train=0), num_forwards=1,
        num_trained_steps=1, eta_seconds=0.0,
    )  # fmt: skip


def make_machine(database: Database) -> type[RuleBasedStateMachine]:
    class LeaseMachine(RuleBasedStateMachine):
        """A model of one job beside the real row; `leases` holds live and dead ones alike."""

        leases = Bundle("leases")

        def __init__(self) -> None:
            super().__init__()
            self.run_id, self.job_id = queue_run(database)
            self.state, self.attempt, self.epoch = "queued", 0, 0
            self.cancel = self.expired = False
            self.rows: list[int] = []

        def holds(self, lease: Lease) -> bool:
            return self.state == "running" and lease.epoch == self.epoch

        def do(self, lease: Lease, act: object) -> bool:
            """Act under a lease; the model says beforehand whether it may."""
            assert callable(act)
            allowed = self.holds(lease)
            try:
                with database.write() as session:
                    act(session)
            except Fenced:
                assert not allowed
                return False
            assert allowed
            return True

        @rule(target=leases)
        def claim(self) -> object:
            free = self.state == "queued" or (self.state == "running" and self.expired)
            may = free and not self.cancel and self.attempt < MAX_ATTEMPTS
            with database.write() as session:
                lease = jobs.claim(session, self.job_id, "somebody", 60)
            assert (lease is not None) == may
            if lease is None:
                return Lease(self.job_id, self.run_id, "train", {}, epoch=-1, attempt=0, step=0)
            self.state, self.expired = "running", False
            self.attempt, self.epoch = self.attempt + 1, self.epoch + 1
            assert (lease.epoch, lease.attempt) == (self.epoch, self.attempt)
            with database.write() as session:
                event = Started(time=1.0, step=min(len(self.rows), 2), iterations=12, device="", versions={})
                results.record_started(session, lease, event)
            self.rows = self.rows[:2]
            return lease

        @rule(lease=leases)
        def heartbeat(self, lease: Lease) -> None:
            with database.write() as session:
                beat = jobs.heartbeat(session, lease, 60)
            assert (beat is not None) == self.holds(lease)
            if beat is not None:
                assert beat.cancel_requested == self.cancel
                self.expired = False

        @rule()
        def time_passes(self) -> None:
            with database.write() as session:
                running = update(Job).where(Job.id == self.job_id, Job.state == "running")
                session.execute(running.values(lease_until=0.0))
            self.expired = self.state == "running"

        @rule(lease=leases)
        def write(self, lease: Lease) -> None:
            step = len(self.rows) + 1
            if self.do(lease, lambda session: results.record_iteration(session, lease, iteration(step, lease.epoch))):
                self.rows.append(lease.epoch)

        @rule(lease=leases, step=st.integers(1, 3))
        def write_again(self, lease: Lease, step: int) -> None:
            """An engine that goes back replaces what stood there and after."""
            if step > len(self.rows):
                return
            if self.do(lease, lambda session: results.record_iteration(session, lease, iteration(step, lease.epoch))):
                self.rows = [*self.rows[: step - 1], lease.epoch]

        @rule(lease=consumes(leases))
        def finish(self, lease: Lease) -> None:
            if self.do(lease, lambda session: jobs.finish(session, lease)):
                self.state = "done"

        @rule(lease=leases, retry=st.booleans())
        def fail(self, lease: Lease, retry: bool) -> None:
            if self.do(lease, lambda session: jobs.fail(session, lease, "It broke.", retry=retry)):
                again = "queued" if retry and self.attempt < MAX_ATTEMPTS else "failed"
                self.state = "cancelled" if self.cancel else again

        @rule(lease=leases)
        def release(self, lease: Lease) -> None:
            if self.do(lease, lambda session: jobs.release(session, lease)):
                self.state, self.attempt = "cancelled" if self.cancel else "queued", self.attempt - 1

        @rule(lease=leases)
        def stopped(self, lease: Lease) -> None:
            if self.do(lease, lambda session: jobs.cancelled(session, lease)):
                self.state = "cancelled"

        @rule()
        def reap(self) -> None:
            with database.write() as session:
                again = jobs.reap(session)
            if self.state == "running" and self.expired:
                after = "failed" if self.attempt >= MAX_ATTEMPTS else "queued"
                self.state, self.epoch = "cancelled" if self.cancel else after, self.epoch + 1
                self.expired = False
                assert (self.job_id in again) == (self.state == "queued")
            else:
                assert self.job_id not in again

        @rule()
        def cancel_it(self) -> None:
            with database.write() as session:
                runs.request_cancel(session, self.run_id)
            if self.state == "queued":
                self.state, self.cancel = "cancelled", True
            elif self.state == "running":
                self.cancel = True

        @rule()
        def retry_it(self) -> None:
            with database.write() as session:
                done = jobs.retry(session, self.job_id)
            assert done == (self.state in ("failed", "cancelled"))
            if done:
                self.state, self.attempt, self.cancel, self.epoch = "queued", 0, False, self.epoch + 1

        @invariant()
        def the_row_is_as_the_model_says(self) -> None:
            with database.read() as session:
                job = session.scalars(select(Job).where(Job.id == self.job_id)).one()
                assert (job.state, job.attempt, job.epoch) == (self.state, self.attempt, self.epoch)
                assert job.cancel_requested == self.cancel
                assert (job.finished_at is not None) == (self.state in ("done", "failed", "cancelled"))
                assert (job.owner is not None) == (self.state == "running")
                if self.state == "queued":
                    assert not self.cancel
                    assert self.attempt < MAX_ATTEMPTS

        @invariant()
        def the_rows_are_those_of_the_holders(self) -> None:
            with database.read() as session:
                found = results.metrics_of(session, self.run_id)
            assert [row.step for row in found] == list(range(1, len(self.rows) + 1))
            assert [row.rewards["epoch"] for row in found] == [float(epoch) for epoch in self.rows]

        def teardown(self) -> None:
            with database.write() as session:
                empty(session)

    return LeaseMachine


def empty(session: Session) -> None:
    session.execute(update(Job).where(Job.state.in_(("queued", "running"))).values(state="cancelled"))


@pytest.fixture
def machine(either_config: Config, either_database: Database, tmp_path: Path) -> Iterator[type[RuleBasedStateMachine]]:
    yield make_machine(either_database)


def test_promises(machine: type[RuleBasedStateMachine]) -> None:
    quick = settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=quick)


@pytest.mark.slow
def test_promises_at_length(machine: type[RuleBasedStateMachine]) -> None:
    long = settings(max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=long)
