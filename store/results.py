"""What engines found out. Writers hold the job's lease first and replace what stands at their step or later.

So a run that is resumed at step N first voids what came after N (`record_started`), and a line that is read twice is
written once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from engine.events import CheckpointSaved, IterationDone, SamplesDrawn, Started
from store import files, jobs
from store.database import NOW
from store.jobs import Lease
from store.tables import Checkpoint, Export, Job, LogLine, Metric, Sample, SampleStep

MAX_LOG_CHARACTERS = 8_000


@dataclass(frozen=True)
class MetricRow:
    """One training iteration. A figure that was not finite is None; a reward that was not is absent."""

    step: int
    time: float
    rewards: dict[str, float]
    spreads: dict[str, float]
    failed_scores: int
    loss: float | None
    grad_norm: float | None
    ratio_drift: float | None
    clipped_share: float | None
    diversity: float | None
    window_start: int
    sample_seconds: float
    decode_seconds: float
    score_seconds: float
    train_seconds: float
    num_forwards: int
    num_trained_steps: int
    eta_seconds: float | None


@dataclass(frozen=True)
class SampleStepRow:
    """The held-out prompts at one step: mean rewards, and further means such as the all-correct share."""

    step: int
    time: float
    rewards: dict[str, float]
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class SampleRow:
    """One evaluation image; `path` is relative to the data home (`store.files.resolve`)."""

    id: int
    run_id: str
    step: int
    index: int
    prompt: str
    seed: int
    path: str
    rewards: dict[str, float]


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint's folder, relative to the data home."""

    step: int
    epoch: int
    time: float
    path: str
    num_bytes: int


@dataclass(frozen=True)
class LogRow:
    """A line of the log: info, warning or error."""

    time: float
    level: str
    text: str


@dataclass(frozen=True)
class ExportRow:
    """An export; `path` (relative to the data home) is there once the file is, `error` if it or its sending failed."""

    id: str
    run_id: str
    step: int
    format: str
    state: str
    path: str | None
    num_bytes: int | None
    report: str
    error: str | None
    created_at: float


def record_started(session: Session, lease: Lease, event: Started) -> None:
    """Void everything past the step the engine starts from. Raises Fenced."""
    jobs.guard(session, lease, event.step)
    for table in (Metric, SampleStep, Sample, Checkpoint, LogLine):
        session.execute(delete(table).where(table.run_id == lease.run_id, table.step > event.step))


def record_iteration(session: Session, lease: Lease, event: IterationDone) -> None:
    """One row of figures. Raises Fenced."""
    jobs.guard(session, lease, event.step)
    session.execute(delete(Metric).where(Metric.run_id == lease.run_id, Metric.step >= event.step))
    session.execute(
        insert(Metric).values(
            run_id=lease.run_id,
            step=event.step,
            epoch=lease.epoch,
            time=event.time,
            rewards=_finite_only(event.rewards),
            spreads=_finite_only(event.spreads),
            failed_scores=event.failed_scores,
            loss=_finite(event.loss),
            grad_norm=_finite(event.grad_norm),
            ratio_drift=_finite(event.ratio_drift),
            clipped_share=_finite(event.clipped_share),
            diversity=None if event.diversity is None else _finite(event.diversity),
            window_start=event.window_start,
            sample_seconds=event.seconds.sample,
            decode_seconds=event.seconds.decode,
            score_seconds=event.seconds.score,
            train_seconds=event.seconds.train,
            num_forwards=event.num_forwards,
            num_trained_steps=event.num_trained_steps,
            eta_seconds=_finite(event.eta_seconds),
        )
    )


def record_samples(session: Session, lease: Lease, event: SamplesDrawn) -> None:
    """The images of one step. Raises Fenced, or OutsideError for an image outside the engine's folder."""
    jobs.guard(session, lease)
    for table in (SampleStep, Sample):
        session.execute(delete(table).where(table.run_id == lease.run_id, table.step >= event.step))
    session.execute(
        insert(SampleStep).values(
            run_id=lease.run_id,
            step=event.step,
            epoch=lease.epoch,
            time=event.time,
            rewards=_finite_only(event.rewards),
            metrics=_finite_only(event.metrics),
            seconds=event.seconds,
        )
    )
    session.add_all(
        Sample(
            run_id=lease.run_id,
            step=event.step,
            index=image.index,
            prompt=_clean(image.prompt),
            seed=image.seed,
            path=files.row_path(lease.run_id, lease.epoch, image.path),
            rewards=_finite_only(image.rewards),
        )
        for image in event.images
    )
    session.flush()


def record_checkpoint(session: Session, lease: Lease, event: CheckpointSaved) -> None:
    """A checkpoint that is complete on disk. Raises Fenced, or OutsideError."""
    jobs.guard(session, lease)
    session.execute(delete(Checkpoint).where(Checkpoint.run_id == lease.run_id, Checkpoint.step >= event.step))
    session.execute(
        insert(Checkpoint).values(
            run_id=lease.run_id,
            step=event.step,
            epoch=lease.epoch,
            time=event.time,
            path=files.row_path(lease.run_id, lease.epoch, event.path),
            num_bytes=event.num_bytes,
        )
    )


def forget_checkpoints(session: Session, lease: Lease, steps: list[int]) -> None:
    """Drop the rows of checkpoints that are gone from disk, or are about to go. Raises Fenced."""
    jobs.guard(session, lease)
    session.execute(delete(Checkpoint).where(Checkpoint.run_id == lease.run_id, Checkpoint.step.in_(steps)))


def record_log(
    session: Session,
    lease: Lease,
    text: str,
    *,
    number: int,
    level: str = "info",
    time: float | None = None,
    step: int | None = None,
) -> None:
    """A line of the log, the epoch's `number`-th (a worker's own count down from -1). Raises Fenced.

    `step` is the iteration it is about, if it is about one.
    """
    jobs.guard(session, lease)
    place = (LogLine.run_id == lease.run_id, LogLine.epoch == lease.epoch, LogLine.number == number)
    session.execute(delete(LogLine).where(*place))
    session.execute(
        insert(LogLine).values(
            run_id=lease.run_id,
            epoch=lease.epoch,
            number=number,
            time=NOW if time is None else time,
            level=level,
            text=_clean(text)[:MAX_LOG_CHARACTERS],
            step=step,
        )
    )


def record_export(session: Session, lease: Lease, *, path: str, num_bytes: int, report: str) -> None:
    """The exported file of the leased job. Raises Fenced."""
    jobs.guard(session, lease)
    export = session.scalars(select(Export).where(Export.job_id == lease.job_id)).one()
    export.path, export.num_bytes, export.report = path, num_bytes, _clean(report)[:MAX_LOG_CHARACTERS]
    session.flush()


def metrics_of(session: Session, run_id: str, after_step: int = -1) -> list[MetricRow]:
    """The run's iterations past `after_step`, in order."""
    rows = session.scalars(
        select(Metric).where(Metric.run_id == run_id, Metric.step > after_step).order_by(Metric.step)
    )
    return [MetricRow(**{name: getattr(row, name) for name in MetricRow.__dataclass_fields__}) for row in rows]


def sample_steps_of(session: Session, run_id: str) -> list[SampleStepRow]:
    """The steps at which the held-out prompts were drawn, in order."""
    rows = session.scalars(select(SampleStep).where(SampleStep.run_id == run_id).order_by(SampleStep.step))
    return [SampleStepRow(row.step, row.time, row.rewards, row.metrics, row.seconds) for row in rows]


def samples_of(session: Session, run_id: str, step: int | None = None) -> list[SampleRow]:
    """The run's evaluation images (of one step, if given), by step and index."""
    query = select(Sample).where(Sample.run_id == run_id).order_by(Sample.step, Sample.index)
    if step is not None:
        query = query.where(Sample.step == step)
    return [_sample(row) for row in session.scalars(query)]


def get_sample(session: Session, sample_id: int) -> SampleRow | None:
    """One evaluation image, or None."""
    row = session.get(Sample, sample_id)
    return None if row is None else _sample(row)


def checkpoints_of(session: Session, run_id: str) -> list[CheckpointRow]:
    """The run's checkpoints, newest step first."""
    rows = session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id).order_by(Checkpoint.step.desc()))
    return [CheckpointRow(row.step, row.epoch, row.time, row.path, row.num_bytes) for row in rows]


def log_tail(session: Session, run_id: str, n: int = 200) -> list[LogRow]:
    """The last `n` lines of the run's log, oldest first."""
    rows = session.scalars(select(LogLine).where(LogLine.run_id == run_id).order_by(LogLine.id.desc()).limit(n))
    return [LogRow(row.time, row.level, row.text) for row in reversed(rows.all())]


def exports_of(session: Session, run_id: str) -> list[ExportRow]:
    """The run's exports, newest first."""
    query = select(Export, Job.state, Job.error).join(Job, Job.id == Export.job_id).where(Export.run_id == run_id)
    return [_export(*row) for row in session.execute(query.order_by(Export.created_at.desc(), Export.id))]


def get_export(session: Session, export_id: str) -> ExportRow | None:
    """One export, or None."""
    query = select(Export, Job.state, Job.error).join(Job, Job.id == Export.job_id).where(Export.id == export_id)
    row = session.execute(query).one_or_none()
    return None if row is None else _export(*row)


def num_metrics_of(session: Session, run_id: str) -> int:
    """How many iterations the run has rows of; cheap enough to ask whether anything is new."""
    return session.scalar(select(func.count()).select_from(Metric).where(Metric.run_id == run_id)) or 0


def _sample(row: Sample) -> SampleRow:
    return SampleRow(row.id, row.run_id, row.step, row.index, row.prompt, row.seed, row.path, row.rewards)


def _export(row: Export, state: str, error: str | None) -> ExportRow:
    return ExportRow(
        row.id, row.run_id, row.step, row.format, state, row.path, row.num_bytes, row.report, error, row.created_at
    )


def _finite(value: float) -> float | None:
    # SQLite keeps NaN as NULL and PostgreSQL keeps it as NaN; None is the same on both.
    return value if math.isfinite(value) else None


def _finite_only(values: Mapping[str, float]) -> dict[str, float]:
    # PostgreSQL's JSON has no NaN.
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _clean(text: str) -> str:
    # PostgreSQL's text holds no NUL, and neither database half a surrogate pair.
    return text.replace("\x00", "").encode("utf-8", errors="replace").decode("utf-8")
