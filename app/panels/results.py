"""What a run has learned so far: gains, charts and the gallery."""

from __future__ import annotations

import html

import streamlit as st

from app import words
from app.charts import PHASE_COLOURS, SERIES_COLOURS, legend_html, reward_chart, time_chart
from app.components.gallery import GalleryData, gallery
from app.connection import database
from app.run_data import (
    Gain,
    failed_scores,
    gains,
    gallery_data,
    reward_names,
    reward_table,
    seconds_an_iteration,
    time_table,
)
from engine.settings import RunSettings
from store.results import MetricRow, SampleStepRow, metrics_of, sample_steps_of, samples_of
from store.runs import RunDetail


def draw_results(run: RunDetail) -> None:
    """Draw everything the run has figures or images of; where there is nothing yet, say when it comes."""
    with database().read() as session:
        rows, steps = metrics_of(session, run.id), sample_steps_of(session, run.id)
    if not rows and not steps:
        _draw_nothing_yet(run)
        return
    draw_gains(gains(run.settings, steps))
    draw_charts(run.settings, rows, steps)
    if failed := failed_scores(run.settings, rows):
        st.caption(f":material/warning: {failed}")
    st.subheader("Gallery", anchor="gallery")
    if not steps:
        st.info("The first images come with the first sampling of the held-out prompts.", icon=":material/image:")
        return
    version = tuple((step.step, step.time) for step in steps)
    _draw_gallery(run.id, _gallery_data(run.id, run.settings.to_yaml(), version, run.settings))


def _draw_nothing_yet(run: RunDetail) -> None:
    match run.state:
        case "queued":
            text = "This run waits for a worker. Its first images appear here soon after it starts."
        case "running":
            text = "The model is being loaded; the base model's images come first, then one row every " \
                   f"{words.count(run.settings.evaluation.every, 'iteration')}."
        case _:
            text = "This run ended before it had anything to show."
    st.info(text, icon=":material/hourglass_empty:")


def gains_html(found: list[Gain]) -> str:
    """Cards of "Vividness 0.89 → 1.34 +51 %"."""
    cards = []
    for gain in found:
        text, share = words.gain(gain.name, gain.first, gain.newest), ""
        if " (" in text:
            text, _, rest = text.partition(" (")
            rest = rest.rstrip(")")
            share = f'<span class="share {"down" if rest.startswith("−") else "up"}">{html.escape(rest)}</span>'
        note = "trained on" if gain.trained else "measured"
        cards.append(
            f'<div><div class="name"><span>{html.escape(gain.title)}</span><span>{note}</span></div>'
            f'<div class="figures">{html.escape(text)}{share}</div></div>'
        )
    return f'<div class="palate-gains">{"".join(cards)}</div>'


def draw_gains(found: list[Gain]) -> None:
    """The cards, with a line on what they compare."""
    if not found:
        return
    st.html(gains_html(found))
    step = found[0].newest_step
    if step:
        st.caption(f"Held-out prompts, fixed seeds: the base model → step {step:,}.")
    else:
        st.caption("Held-out prompts, fixed seeds: the base model, before any training.")


def draw_charts(settings: RunSettings, rows: list[MetricRow], steps: list[SampleStepRow]) -> None:
    """One panel a reward, and the time split."""
    names = reward_names(settings, rows, steps)
    table = reward_table(names, rows, steps)
    last = max([row.step for row in rows[-1:]] + [row.step for row in steps[-1:]])
    panels = [name for name in names if (table["reward"] == words.reward_title(name)).any()]
    columns = st.columns(max(1, min(3, len(panels) + bool(rows))), gap="medium")
    for place, name in enumerate(panels):
        title = words.reward_title(name)
        with columns[place % len(columns)]:
            st.altair_chart(reward_chart(table[table["reward"] == title], title, last), key=f"chart-{name}",
                            alt=f"{title} over the steps")
            st.html(legend_html(SERIES_COLOURS))
    if rows:
        with columns[len(panels) % len(columns)]:
            st.altair_chart(time_chart(time_table(rows), last, seconds_an_iteration(rows)), key="chart-time",
                            alt="Seconds an iteration, split into its parts")
            st.html(legend_html(PHASE_COLOURS))


@st.cache_data(show_spinner=False, max_entries=8)
def _gallery_data(
    run_id: str, settings_text: str, version: tuple[tuple[int, float], ...], _settings: RunSettings
) -> GalleryData:
    """Ten thousand samples take a moment to read, so they are read anew only when a sampled step came or went."""
    with database().read() as session:
        samples = samples_of(session, run_id)
    return gallery_data(run_id, _settings, samples)


def _draw_gallery(run_id: str, data: GalleryData) -> None:
    key = f"gallery-{run_id}"

    def remember() -> None:
        selected = st.session_state[key].get("selected")
        if selected:
            st.query_params["image"] = selected
        else:
            st.query_params.pop("image", None)

    gallery(data, key=key, selected=st.query_params.get("image"), on_select=remember)
