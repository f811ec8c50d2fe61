"""How a run stands: badge, progress, time left, its actions, and the card of a run that failed."""

from __future__ import annotations

import streamlit as st

from app import words
from app.connection import config, database
from app.estimates import less_memory
from engine.durations import duration
from engine.memory_advice import Change
from engine.model_checks import folder_here
from store.permissions import Permissions
from store.presence import list_workers
from store.results import log_tail
from store.runs import RunDetail, RunSummary, request_cancel, retry_run
from workers.queue import ring

ACTIVE = ("queued", "running")


def progress_text(run: RunSummary, queue_position: int | None = None) -> str:
    """One line on how far a run is: "Iteration 34 of 100 · 2 min left"."""
    of = f"Iteration {run.step:,} of {run.iterations:,}"
    match run.state:
        case "queued":
            place = "next to start" if queue_position in (None, 1) else f"{queue_position - 1} before it"
            return f"Waiting for a worker, {place}" + (f" · goes on from step {run.step:,}" if run.step else "")
        case "running" if run.cancel_requested:
            return f"{of} · stopping after the checkpoint"
        case "running" if run.step == 0:
            return f"Starting: the model is loaded and the first samples are drawn · {run.iterations:,} iterations"
        case "running":
            return " · ".join(part for part in (of, words.time_left(run.eta_seconds)) if part)
        case "done":
            return f"All {run.iterations:,} iterations{_took(run)}"
        case _:
            return f"Stopped at iteration {run.step:,} of {run.iterations:,}"


def _took(run: RunSummary) -> str:
    if run.started_at is None or run.finished_at is None:
        return ""
    return f" in {duration(run.finished_at - run.started_at)}"


def draw_badge(run: RunSummary) -> None:
    """The run's state as a badge."""
    look = words.look(run.state, run.cancel_requested)
    st.badge(look.word, icon=look.icon, color=look.colour)  # type: ignore[arg-type]


def draw_progress(run: RunSummary, queue_position: int | None = None) -> None:
    """The progress bar with its line."""
    st.progress(min(1.0, run.step / max(1, run.iterations)), text=progress_text(run, queue_position))


def draw_actions(run: RunDetail) -> None:
    """Stop or retry, and a new run from these settings.

    Each has a place of its own: while one takes the other's, both are on the page for a moment, and a button that moved
    then would slip from under the pointer.
    """
    first, second = st.columns([2, 3], gap="small", vertical_alignment="top")
    if run.state in ACTIVE:
        first.button("Stop", icon=":material/stop_circle:", on_click=_cancel, args=(run.id,),
                     disabled=run.cancel_requested, width="stretch",
                     help="A run in training writes a checkpoint first; it can be retried from there.")
    elif run.state in ("failed", "cancelled"):
        first.button("Retry", icon=":material/replay:", type="primary", on_click=_retry, args=(run.id,),
                     width="stretch", help="Goes on from the newest checkpoint.")
    if second.button("New run like this", icon=":material/content_copy:", width="stretch"):
        st.switch_page("views/new_run.py", query_params={"like": run.id})


def _cancel(run_id: str) -> None:
    with database().write() as session:
        request_cancel(session, run_id)


def _retry(run_id: str) -> None:
    try:
        with database().write() as session:
            job_id = retry_run(session, run_id)
    except ValueError as error:  # another tab was quicker
        st.toast(str(error))
        return
    ring(config(), job_id)


def lighter(run: RunDetail) -> tuple[Change, ...]:
    """What to change of a run's settings after a memory was full; () if none was, or nothing is known to help."""
    with database().read() as session:
        devices = [worker.device for worker in list_workers(session)]
    try:
        settings = Permissions.of(config()).checked(run.settings)
        return less_memory(settings, run.error or "", folder_here(settings.model), devices)
    except ValueError:  # its model is no longer there, or may no longer be read
        return ()


def _offer_less_memory(run: RunDetail) -> None:
    """A way to a new run with lighter settings, where they are known."""
    changes = lighter(run)
    if not changes:
        return
    about, action = st.columns([5, 2], vertical_alignment="center")
    about.markdown(f"Less memory: {words.changes(changes)}.")
    if action.button("Retry with less memory", icon=":material/compress:", width="stretch",
                     help="Opens a new run with these settings; it starts from the first iteration."):
        st.switch_page("views/new_run.py", query_params={"like": run.id, "less": "memory"})


def draw_failure(run: RunDetail) -> None:
    """Why a run failed, in plain words, with the last lines of its log."""
    error = run.error or ""
    with st.container(border=True):
        st.error(words.cause(error), icon=":material/error:")
        _offer_less_memory(run)
        with database().read() as session:
            lines = log_tail(session, run.id, 12)
        said = [f"{line.level}: {line.text}" if line.level != "info" else line.text for line in lines]
        st.caption(f"The last lines of its log (attempt {run.attempt} of {run.max_attempts}, step {run.step}):")
        st.code("\n".join(said) or error or "The log is empty.", language=None, wrap_lines=True)
