"""Which workers are there: each says so every few seconds."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from store.database import NOW
from store.tables import Job, WorkerRow


@dataclass(frozen=True)
class WorkerSummary:
    """A worker: when it was last heard of (`silent_seconds` ago, by the database's clock), and what it works on."""

    name: str
    host: str
    device: str
    started_at: float
    seen_at: float
    silent_seconds: float
    run_ids: tuple[str, ...]


def worker_seen(session: Session, name: str, *, host: str, device: str) -> None:
    """Note that a worker is alive."""
    seen = session.execute(
        update(WorkerRow)
        .where(WorkerRow.name == name)
        .values(seen_at=NOW, host=host, device=device)
        .returning(WorkerRow.name)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if seen is None:
        session.add(WorkerRow(name=name, host=host, device=device))
        session.flush()


def worker_gone(session: Session, name: str) -> None:
    """Note that a worker has ended."""
    session.execute(delete(WorkerRow).where(WorkerRow.name == name))


def forget_silent_workers(session: Session, silent_seconds: float) -> None:
    """Drop workers that were killed without a word."""
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < NOW - silent_seconds))


def list_workers(session: Session) -> list[WorkerSummary]:
    """The workers heard of lately, by name."""
    running: dict[str, list[str]] = {}
    for owner, run_id in session.execute(select(Job.owner, Job.run_id).where(Job.state == "running")):
        running.setdefault(owner or "", []).append(run_id)
    rows = session.execute(select(WorkerRow, (NOW - WorkerRow.seen_at).label("silent")).order_by(WorkerRow.name))
    return [
        WorkerSummary(
            name=row.WorkerRow.name,
            host=row.WorkerRow.host,
            device=row.WorkerRow.device,
            started_at=row.WorkerRow.started_at,
            seen_at=row.WorkerRow.seen_at,
            silent_seconds=row.silent,
            run_ids=tuple(running.get(row.WorkerRow.name, ())),
        )
        for row in rows
    ]
