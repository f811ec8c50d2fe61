"""A run's page: how it stands, what it has learned, its log, settings and exports; its address is /run?id=ID."""

from __future__ import annotations

import streamlit as st

from app import words
from app.connection import database
from app.panels.exports import draw_exports
from app.panels.log import draw_log
from app.panels.results import draw_results
from app.panels.status import ACTIVE, draw_actions, draw_badge, draw_failure, draw_progress
from store.runs import RunDetail, get_run

LIVE_SECONDS = 2.0


def find_run(run_id: str) -> RunDetail | None:
    """The run as it stands now."""
    with database().read() as session:
        return get_run(session, run_id)


def draw_heading(run: RunDetail) -> None:
    """Title, badge and actions.

    Not part of a fragment: a fragment that asks for the whole page anew forgets its own buttons, and a click on one of
    them in that moment would be lost.
    """
    title, actions = st.columns([5, 3], vertical_alignment="top")
    with title, st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.header(run.name, anchor=False, width="content")
        draw_badge(run)
    with actions:
        draw_actions(run)
    prompts = run.prompt_set_name or "built-in prompts"
    rewards = ", ".join(words.reward_title(reward.key) for reward in run.settings.rewards)
    st.caption(f"{words.model_title(run.settings.model)} · {rewards} · {prompts} · made {words.ago(run.created_at)}")


def draw_status(run_id: str, drawn: tuple[str, bool]) -> None:
    """Progress; once the run's state is no longer the one the heading shows, the whole page is drawn anew."""
    run = find_run(run_id)
    assert run is not None
    if (run.state, run.cancel_requested) != drawn:
        st.rerun(scope="app")
    draw_progress(run, run.queue_position)


def draw_results_of(run_id: str) -> None:
    """The results, read anew."""
    run = find_run(run_id)
    assert run is not None
    draw_results(run)


def draw_exports_of(run_id: str) -> None:
    """The exports, read anew."""
    run = find_run(run_id)
    assert run is not None
    draw_exports(run)


def draw_page() -> None:
    """The page of the run that the address names."""
    run_id = st.query_params.get("id", "")
    run = find_run(run_id) if run_id else None
    if run is None:
        st.header("No such run", anchor=False)
        st.info("This address names no run of this workbench. It may have been made in another data folder.")
        st.page_link("views/runs.py", label="All runs", icon=":material/grid_view:")
        return
    every = LIVE_SECONDS if run.state in ACTIVE else None
    draw_heading(run)
    st.fragment(draw_status, run_every=every)(run.id, (run.state, run.cancel_requested))
    if run.state == "failed":  # outside the fragment: from inside one, its button would lead to an empty page
        draw_failure(run)
    st.fragment(draw_results_of, run_every=every)(run.id)
    st.space("small")
    export, log, settings = st.tabs(["Take home", "Log", "Settings"], key="part", on_change="rerun",
                                    bind="query-params")
    with export:
        st.fragment(draw_exports_of, run_every=LIVE_SECONDS)(run.id)
    with log:
        st.fragment(draw_log, run_every=every)(run.id)
    with settings:
        st.caption("These settings give the same run again: `palate train SETTINGS.yaml --out DIR`.")
        st.code(run.settings.to_yaml(), language="yaml")
        st.download_button("Download settings.yaml", run.settings.to_yaml(), "settings.yaml", "application/yaml",
                           icon=":material/download:", on_click="ignore")


draw_page()
