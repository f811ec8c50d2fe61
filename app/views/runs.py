"""The list of runs: what each is doing, its newest images and scores."""

from __future__ import annotations

import html

import streamlit as st

from app import words
from app.connection import database
from app.file_routes import sample_address
from app.panels.status import ACTIVE, draw_badge, draw_progress
from store.results import SampleRow, SampleStepRow, sample_steps_of, samples_of
from store.runs import RunSummary, list_runs

A_PAGE = 12
STRIP = 4
LIVE_SECONDS = 3.0


def strip_html(samples: list[SampleRow]) -> str:
    """The first images of the newest sampled step, side by side."""
    images = "".join(
        f'<img loading="lazy" src="/files/samples/{sample_address(sample.id, sample.path)}" '
        f'alt="{html.escape(sample.prompt, quote=True)}" title="{html.escape(sample.prompt, quote=True)}">'
        for sample in samples[:STRIP]
    )
    return f'<div class="palate-strip">{images}{"<span class=none></span>" * (STRIP - len(samples[:STRIP]))}</div>'


def gains_line(steps: list[SampleStepRow]) -> str:
    """One line, "Vividness 0.89 → 1.34 (+51 %)" for each reward."""
    if not steps:
        return ""
    base = steps[0].rewards if steps[0].step == 0 and len(steps) > 1 else {}
    return " · ".join(f"{words.reward_title(name)} {words.gain(name, base.get(name), value)}"
                      for name, value in steps[-1].rewards.items())


def draw_run(run: RunSummary) -> None:
    """One run as a card."""
    with database().read() as session:
        steps = sample_steps_of(session, run.id)
        samples = samples_of(session, run.id, steps[-1].step) if steps else []
    with st.container(border=True):
        images, about, progress = st.columns([1.75, 3.1, 2.5], vertical_alignment="center", gap="medium")
        images.html(strip_html(samples))
        with about:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.page_link("views/run.py", label=f"**{run.name}**", query_params={"id": run.id}, width="content")
                draw_badge(run)
            line = gains_line(steps)
            st.caption(line or (words.cause(run.error) if run.error else f"Made {words.ago(run.created_at)}"))
        with progress:
            draw_progress(run)


@st.fragment(run_every=LIVE_SECONDS)
def draw_runs() -> None:
    """All runs, newest first, a page at a time."""
    with database().read() as session:
        runs = list_runs(session)
    if not runs:
        st.info("There are no runs yet. A run takes a model, prompts and rewards, and teaches the model your taste.",
                icon=":material/palette:")
        st.page_link("views/new_run.py", label="Make the first run", icon=":material/add_circle:")
        return
    active = sum(run.state in ACTIVE for run in runs)
    st.caption(f"{words.count(len(runs), 'run')}" + (f", {active} active" if active else ""))
    pages = -(-len(runs) // A_PAGE)
    page = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    for run in runs[(page - 1) * A_PAGE : page * A_PAGE]:
        draw_run(run)


def draw_page() -> None:
    """The list under its title."""
    title, action = st.columns([4, 1], vertical_alignment="center")
    title.header("Runs", anchor=False)
    if action.button("New run", type="primary", icon=":material/add_circle:", width="stretch"):
        st.switch_page("views/new_run.py")
    draw_runs()


draw_page()
