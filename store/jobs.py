"""Jobs and their leases: who works on what, proven anew at every write.

A claim gives a lease with a new epoch; every later write names that epoch and fails (`Fenced`) once anything else has
taken the job over: another claim, the reaper, a retry. All times are the database's. Nothing here commits.
Invariants: a queued job is always claimable (no cancel requested, attempts left); epochs only rise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, case, literal, or_, select, update
from sqlalchemy.orm import Session

from store.database import NOW
from store.tables import Job, new_id

JobKind = Literal["train", "export"]
MAX_ERROR_CHARACTERS = 4_000


class Fenced(RuntimeError):  # noqa: N818 - the field's word; it ends the holder's work, nothing is wrong
    """The lease is no longer held: somebody else has the job, or it is over."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a job, until it expires or is taken over."""

    job_id: str
    run_id: str
    kind: JobKind
    payload: dict[str, Any]
    epoch: int
    attempt: int
    step: int


@dataclass(frozen=True)
class Beat:
    """What a heartbeat brings back."""

    cancel_requested: bool


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits for a worker."""

    id: str
    kind: JobKind
    run_id: str
    queued_at: float


def new_job(run_id: str, kind: JobKind, payload: dict[str, Any] | None = None) -> Job:
    """A queued job; its id begins with its kind, so that a bell can be rung without asking the database."""
    return Job(id=f"{kind}-{new_id()}", run_id=run_id, kind=kind, payload=payload or {}, state="queued")


def kind_of(job_id: str) -> JobKind:
    """The kind an id names. Raises ValueError for anything else."""
    kind = job_id.partition("-")[0]
    if kind == "train":
        return "train"
    if kind == "export":
        return "export"
    raise ValueError(f"{job_id!r} is no job's id.")


def claim(session: Session, job_id: str, owner: str, lease_seconds: float) -> Lease | None:
    """Take a queued job, or a running one whose lease ran out; None if there is nothing to take."""
    expired = and_(Job.state == "running", Job.lease_until < NOW)
    row = session.execute(
        update(Job)
        .where(
            Job.id == job_id,
            ~Job.cancel_requested,
            Job.attempt < Job.max_attempts,
            or_(Job.state == "queued", expired),
        )
        .values(
            state="running",
            owner=owner,
            epoch=Job.epoch + 1,
            attempt=Job.attempt + 1,
            lease_until=NOW + lease_seconds,
            heartbeat_at=NOW,
            started_at=case((Job.started_at.is_(None), NOW), else_=Job.started_at),
            finished_at=None,
        )
        .returning(Job.run_id, Job.kind, Job.payload, Job.epoch, Job.attempt, Job.step)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return None
    return Lease(job_id, row.run_id, kind_of(job_id), row.payload, row.epoch, row.attempt, row.step)


def heartbeat(session: Session, lease: Lease, lease_seconds: float) -> Beat | None:
    """Extend the lease; None = fenced: stop at once."""
    cancel_requested = session.execute(
        update(Job)
        .where(_held(lease))
        .values(lease_until=NOW + lease_seconds, heartbeat_at=NOW)
        .returning(Job.cancel_requested)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    return None if cancel_requested is None else Beat(cancel_requested)


def peek(session: Session, lease: Lease) -> Beat | None:
    """What a heartbeat would say, without extending the lease (a read)."""
    cancel_requested = session.execute(select(Job.cancel_requested).where(_held(lease))).scalar_one_or_none()
    return None if cancel_requested is None else Beat(cancel_requested)


def guard(session: Session, lease: Lease, step: int | None = None) -> None:
    """Hold the job's row to the end of this transaction, noting `step`. Raises Fenced if the lease is not held."""
    _settle(session, lease, step=Job.step if step is None else step)


def finish(session: Session, lease: Lease) -> None:
    """The work is done. Raises Fenced."""
    _settle(session, lease, state="done", error=None, **_over())


def cancelled(session: Session, lease: Lease) -> None:
    """The work was stopped because somebody asked. Raises Fenced."""
    _settle(session, lease, state="cancelled", **_over())


def fail(session: Session, lease: Lease, error: str, *, retry: bool) -> None:
    """The work failed: queued again if `retry` and attempts are left, else failed. Raises Fenced."""
    again = and_(literal(retry), Job.attempt < Job.max_attempts)
    _settle(
        session,
        lease,
        state=case((Job.cancel_requested, "cancelled"), (again, "queued"), else_="failed"),
        error=error[:MAX_ERROR_CHARACTERS],
        finished_at=case((and_(again, ~Job.cancel_requested), None), else_=NOW),
        owner=None,
        lease_until=None,
    )


def release(session: Session, lease: Lease) -> None:
    """Give the job back unfinished, at no cost of an attempt: the worker is told to stop. Raises Fenced."""
    _settle(
        session,
        lease,
        state=case((Job.cancel_requested, "cancelled"), else_="queued"),
        attempt=Job.attempt - 1,
        finished_at=case((Job.cancel_requested, NOW), else_=None),
        owner=None,
        lease_until=None,
    )


def reap(session: Session) -> list[str]:
    """Take expired leases away: jobs queued again, cancelled, or failed for good. Returns the ids queued again."""
    spent = Job.attempt >= Job.max_attempts
    rows = session.execute(
        update(Job)
        .where(Job.state == "running", Job.lease_until < NOW)
        .values(
            state=case((Job.cancel_requested, "cancelled"), (spent, "failed"), else_="queued"),
            epoch=Job.epoch + 1,
            owner=None,
            lease_until=None,
            error=case(
                (
                    and_(spent, ~Job.cancel_requested),
                    "The worker was lost each time it tried this; see the run's log, then retry.",
                ),
                else_=Job.error,
            ),
            finished_at=case((or_(spent, Job.cancel_requested), NOW), else_=None),
        )
        .returning(Job.id, Job.state)
        .execution_options(synchronize_session=False)
    ).all()
    return [row.id for row in rows if row.state == "queued"]


def request_cancel(session: Session, job_id: str) -> None:
    """Ask for a stop: a queued job is cancelled at once, a running one by its worker; a finished one stays."""
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state.in_(("queued", "running")))
        .values(
            cancel_requested=True,
            state=case((Job.state == "queued", "cancelled"), else_=Job.state),
            finished_at=case((Job.state == "queued", NOW), else_=Job.finished_at),
        )
        .execution_options(synchronize_session=False)
    )


def retry(session: Session, job_id: str) -> bool:
    """Queue a failed or cancelled job again, with all its attempts; False if it is neither."""
    row = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state.in_(("failed", "cancelled")))
        .values(
            state="queued",
            attempt=0,
            epoch=Job.epoch + 1,
            cancel_requested=False,
            error=None,
            queued_at=NOW,
            finished_at=None,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return row is not None


def queued_jobs(session: Session, kind: JobKind | None = None, limit: int = 1_000) -> list[QueuedJob]:
    """The jobs that wait, longest first."""
    query = select(Job.id, Job.kind, Job.run_id, Job.queued_at).where(Job.state == "queued")
    if kind is not None:
        query = query.where(Job.kind == kind)
    rows: Sequence[Any] = session.execute(query.order_by(Job.queued_at, Job.id).limit(limit)).all()
    return [QueuedJob(row.id, kind_of(row.id), row.run_id, row.queued_at) for row in rows]


def _held(lease: Lease) -> ColumnElement[bool]:
    return and_(Job.id == lease.job_id, Job.epoch == lease.epoch, Job.state == "running")


def _over() -> dict[str, Any]:
    return {"finished_at": NOW, "owner": None, "lease_until": None}


def _settle(session: Session, lease: Lease, **values: Any) -> None:
    """Change the leased job's row, which also locks it; raises Fenced if the lease is not held."""
    row = session.execute(
        update(Job)
        .where(_held(lease))
        .values(**values)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise Fenced(f"Job {lease.job_id} is no longer held in epoch {lease.epoch}.")
