"""The tables. Times are seconds since the epoch by the database's clock; paths are relative to the data home."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, CheckConstraint, Double, ForeignKey, Index, MetaData, Text
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.database import NOW


class Table(DeclarativeBase):
    """Base of all tables; constraints have names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own spelling
        str: Text(),
        float: Double(),
        bool: Boolean(),
        dict[str, Any]: JSON(),
        dict[str, float]: JSON(),
        list[str]: JSON(),
    }


def new_id() -> str:
    """An id made here, never by a client: twelve hex digits."""
    return secrets.token_hex(6)


class PromptSet(Table):
    """An uploaded set of prompts, kept in its file's order."""

    __tablename__ = "prompt_set"

    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    source_name: Mapped[str]
    num_prompts: Mapped[int]
    num_duplicates_removed: Mapped[int] = mapped_column(default=0)
    # Up to 5 MB: lists of sets leave it in the database.
    prompts: Mapped[list[str]] = mapped_column(deferred=True)
    created_at: Mapped[float] = mapped_column(default=NOW)


class Run(Table):
    """A fine-tune: what was asked for. How far it is stands in its job."""

    __tablename__ = "run"

    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    settings: Mapped[dict[str, Any]]
    prompt_set_id: Mapped[str | None] = mapped_column(ForeignKey("prompt_set.id"))
    is_demo: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(default=NOW)


class Job(Table):
    """One piece of work for a worker, with its lease (see store.jobs)."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint("kind IN ('train', 'export')", name="kind"),
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="state"),
        Index(None, "state", "queued_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(default=dict)
    state: Mapped[str] = mapped_column(default="queued")
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=3)
    epoch: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    heartbeat_at: Mapped[float | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    step: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None]
    created_at: Mapped[float] = mapped_column(default=NOW)
    queued_at: Mapped[float] = mapped_column(default=NOW)
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class Metric(Table):
    """One finished training iteration. A figure that was not finite is NULL; a reward that was not is absent."""

    __tablename__ = "metric"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    time: Mapped[float]
    rewards: Mapped[dict[str, float]]
    spreads: Mapped[dict[str, float]] = mapped_column(server_default="{}")
    failed_scores: Mapped[int]
    loss: Mapped[float | None]
    grad_norm: Mapped[float | None]
    ratio_drift: Mapped[float | None]
    clipped_share: Mapped[float | None]
    diversity: Mapped[float | None]
    window_start: Mapped[int]
    sample_seconds: Mapped[float]
    decode_seconds: Mapped[float]
    score_seconds: Mapped[float]
    train_seconds: Mapped[float]
    num_forwards: Mapped[int]
    num_trained_steps: Mapped[int]
    eta_seconds: Mapped[float | None]


class SampleStep(Table):
    """The held-out prompts drawn after `step` iterations."""

    __tablename__ = "sample_step"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    time: Mapped[float]
    rewards: Mapped[dict[str, float]]
    metrics: Mapped[dict[str, float]]
    seconds: Mapped[float]


class Sample(Table):
    """One evaluation image. Ids are never used again, so an image may be cached by its id."""

    __tablename__ = "sample"
    __table_args__ = (Unique("run_id", "step", "index"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    step: Mapped[int]
    index: Mapped[int]
    prompt: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[str]
    rewards: Mapped[dict[str, float]]


class Checkpoint(Table):
    """A checkpoint that is complete on disk."""

    __tablename__ = "checkpoint"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    time: Mapped[float]
    path: Mapped[str]
    num_bytes: Mapped[int] = mapped_column(BigInteger)


class LogLine(Table):
    """A line of the run's log; `number` is the event's place in its epoch, negative for the worker's own lines.

    `step` is the iteration it is about, if it is about one.
    """

    __tablename__ = "log_line"
    __table_args__ = (Unique("run_id", "epoch", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    epoch: Mapped[int]
    number: Mapped[int] = mapped_column(BigInteger)
    time: Mapped[float]
    level: Mapped[str]
    text: Mapped[str]
    step: Mapped[int | None]


class Export(Table):
    """A checkpoint exported to a file for other programs; its state is its job's."""

    __tablename__ = "export"

    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), unique=True)
    step: Mapped[int]
    format: Mapped[str]
    path: Mapped[str | None]
    num_bytes: Mapped[int | None] = mapped_column(BigInteger)
    report: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float] = mapped_column(default=NOW)


class WorkerRow(Table):
    """A worker that is, or was lately, alive."""

    __tablename__ = "worker"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    device: Mapped[str]
    started_at: Mapped[float] = mapped_column(default=NOW)
    seen_at: Mapped[float] = mapped_column(default=NOW)
