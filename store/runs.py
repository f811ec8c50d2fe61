"""Runs: made with their job, listed, looked at, cancelled and tried again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session, aliased

from engine.catalogue import EXPORT_INFO, ExportPrecision, why_not
from engine.model_checks import check_model
from engine.settings import RunSettings
from engine.settings.model import HUB_ID
from engine.settings_text import parse_settings
from store import jobs
from store.permissions import NOTHING, Permissions
from store.prompt_sets import checked_name
from store.tables import Checkpoint, Export, Job, Metric, PromptSet, Run

RunState = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class RunSummary:
    """A run as a list shows it. Times are seconds since the epoch; `rewards` are the newest iteration's means."""

    id: str
    name: str
    is_demo: bool
    state: RunState
    cancel_requested: bool
    step: int
    iterations: int
    rewards: dict[str, float]
    eta_seconds: float | None
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True)
class RunDetail(RunSummary):
    """A run as its own page shows it. `queue_position` is 1 for the next to start, None if it does not wait."""

    settings: RunSettings
    prompt_set_id: str | None
    prompt_set_name: str | None
    job_id: str
    attempt: int
    max_attempts: int
    epoch: int
    owner: str | None
    heartbeat_at: float | None
    queue_position: int | None


def create_run(
    session: Session,
    *,
    name: str,
    settings: RunSettings,
    prompt_set_id: str | None = None,
    is_demo: bool = False,
    permissions: Permissions = NOTHING,
) -> Run:
    """A run and its queued job (`job_of` names it); ring for it after the commit.

    Raises ValueError for a bad name, an unknown prompt set, settings that name what is not permitted, or a model whose
    files on this machine do not fit. The run's settings name whole paths.
    """
    settings = permissions.checked(settings)
    check_model(settings)
    if prompt_set_id is not None and session.get(PromptSet, prompt_set_id) is None:
        raise ValueError("That prompt set is no longer there; choose another.")
    run = Run(
        name=checked_name(name, "run"),
        settings=settings.model_dump(mode="json"),
        prompt_set_id=prompt_set_id,
        is_demo=is_demo,
    )
    session.add(run)
    session.flush()
    session.add(jobs.new_job(run.id, "train"))
    session.flush()
    return run


def job_of(session: Session, run_id: str) -> str:
    """The id of the run's train job. Raises ValueError if there is no such run."""
    job_id = session.scalar(select(Job.id).where(Job.run_id == run_id, Job.kind == "train"))
    if job_id is None:
        raise ValueError(f"There is no run {run_id}.")
    return job_id


def has_runs(session: Session) -> bool:
    """Whether any run was ever made."""
    return session.scalar(select(Run.id).limit(1)) is not None


def list_runs(session: Session) -> list[RunSummary]:
    """All runs, newest first."""
    rows = session.execute(_runs_and_jobs().order_by(Run.created_at.desc(), Run.id)).all()
    return [RunSummary(**_summary(row.Run, row.Job, row.rewards, row.eta_seconds)) for row in rows]


def get_run(session: Session, run_id: str) -> RunDetail | None:
    """One run, or None."""
    row = session.execute(_runs_and_jobs().where(Run.id == run_id)).one_or_none()
    if row is None:
        return None
    run: Run = row.Run
    job: Job = row.Job
    waiting = [queued.id for queued in jobs.queued_jobs(session, "train")] if job.state == "queued" else []
    return RunDetail(
        **_summary(run, job, row.rewards, row.eta_seconds),
        settings=parse_settings(run.settings),
        prompt_set_id=run.prompt_set_id,
        prompt_set_name=session.scalar(select(PromptSet.name).where(PromptSet.id == run.prompt_set_id)),
        job_id=job.id,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        epoch=job.epoch,
        owner=job.owner,
        heartbeat_at=job.heartbeat_at,
        queue_position=waiting.index(job.id) + 1 if job.id in waiting else None,
    )


def request_cancel(session: Session, run_id: str) -> None:
    """Ask for a stop: a waiting run is cancelled at once, a running one after its checkpoint. Raises ValueError."""
    jobs.request_cancel(session, job_of(session, run_id))


def retry_run(session: Session, run_id: str) -> str:
    """Queue a failed or cancelled run again, from its newest checkpoint; returns the job to ring for.

    Raises ValueError if the run is waiting, running or done.
    """
    job_id = job_of(session, run_id)
    if not jobs.retry(session, job_id):
        raise ValueError("Only a run that failed or was cancelled can be tried again.")
    return job_id


def request_export(
    session: Session,
    run_id: str,
    *,
    step: int | None = None,
    format: str = "diffusers",
    precision: ExportPrecision = "float32",
    push: str | None = None,
    public: bool = False,
) -> Export:
    """An export of a checkpoint (the newest, without `step`) and its queued job, `export.job_id`.

    `push`: the hub's model it is sent to as well, which the worker must permit; private unless `public`.

    Raises ValueError if there is no such checkpoint or format, or if the run cannot be had in it.
    """
    if format not in EXPORT_INFO:
        raise ValueError(f"There is no export format {format!r}; there are: {', '.join(EXPORT_INFO)}.")
    if push is not None and not re.fullmatch(HUB_ID, push):
        raise ValueError(f"No model on the hub could be called {push}; give ORG/NAME, ORG being an account.")
    query = select(Checkpoint.step).where(Checkpoint.run_id == run_id).order_by(Checkpoint.step.desc())
    steps = list(session.scalars(query))
    if not steps:
        raise ValueError("This run has no checkpoint yet; the first comes after a few iterations.")
    if step is not None and step not in steps:
        raise ValueError(f"There is no checkpoint of step {step}; there are: {', '.join(map(str, steps))}.")
    chosen = steps[0] if step is None else step
    settings = parse_settings(session.get_one(Run, run_id).settings)
    refusal = why_not(format, settings.tuning.method, settings.model.name)
    if refusal is not None:
        raise ValueError(refusal)
    asked = {"step": chosen, "format": format, "precision": precision, "push": push, "public": public}
    job = jobs.new_job(run_id, "export", asked)
    session.add(job)
    session.flush()
    export = Export(run_id=run_id, job_id=job.id, step=chosen, format=format)
    session.add(export)
    session.flush()
    return export


def _runs_and_jobs() -> Select[Run, Job, dict[str, float], float | None]:
    any_metric = aliased(Metric)
    # Asked run by run, this is one look into the index each, however many iterations there are.
    newest = select(func.max(any_metric.step)).where(any_metric.run_id == Run.id).scalar_subquery()
    return (
        select(Run, Job, Metric.rewards, Metric.eta_seconds)
        .join(Job, and_(Job.run_id == Run.id, Job.kind == "train"))
        .outerjoin(Metric, and_(Metric.run_id == Run.id, Metric.step == newest))
    )


def _summary(run: Run, job: Job, rewards: dict[str, float] | None, eta_seconds: float | None) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "is_demo": run.is_demo,
        "state": job.state,
        "cancel_requested": job.cancel_requested,
        "step": job.step,
        "iterations": int(run.settings["iterations"]),
        "rewards": rewards or {},
        "eta_seconds": eta_seconds if job.state == "running" else None,
        "error": job.error if job.state == "failed" else None,
        "created_at": run.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }
