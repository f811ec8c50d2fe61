"""What a run has learned so far: gains, charts and the gallery."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from app import words
from app.charts import (
    PHASE_COLOURS,
    SERIES_COLOURS,
    legend_html,
    reward_chart,
    reward_colours,
    standardised_chart,
    time_chart,
)
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
    standardised_table,
    time_table,
)
from engine.settings import RunSettings
from engine.standardised import Scale, scales_of
from store.results import MetricRow, SampleStepRow, metrics_of, sample_steps_of, samples_of
from store.runs import RunDetail

STANDARDISED, RAW = "Standardised", "Raw"
STANDARDISED_NOTE = (
    "0 is the base model's mean on the held-out prompts and 1 the standard deviation of its scores there. "
    "Points: held-out prompts; thin lines: training, smoothed."
)


def draw_results(run: RunDetail) -> None:
    """Draw everything the run has figures or images of; where there is nothing yet, say when it comes."""
    with database().read() as session:
        rows, steps = metrics_of(session, run.id), sample_steps_of(session, run.id)
    if not rows and not steps:
        _draw_nothing_yet(run)
        return
    draw_gains(gains(run.settings, steps))
    scales = _scales(run.id, steps[0].time) if steps and steps[0].step == 0 else {}
    draw_charts(run.settings, rows, steps, scales)
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


def draw_charts(
    settings: RunSettings, rows: list[MetricRow], steps: list[SampleStepRow], scales: Mapping[str, Scale]
) -> None:
    """The rewards, all on one axis or each in its own units, and the time split."""
    names = reward_names(settings, rows, steps)
    table = reward_table(names, rows, steps)
    last = max([row.step for row in rows[-1:]] + [row.step for row in steps[-1:]])
    panels = [name for name in names if (table["reward"] == words.reward_title(name)).any()]
    if scales and _is_standardised(panels):
        charts, timing = st.columns([2, 1], gap="medium") if rows else (st.container(), None)
        with charts:
            _draw_standardised(table, panels, scales, last)
    else:
        columns = st.columns(max(1, min(3, len(panels) + bool(rows))), gap="medium")
        timing = columns[len(panels) % len(columns)]
        for place, name in enumerate(panels):
            title = words.reward_title(name)
            with columns[place % len(columns)]:
                st.altair_chart(reward_chart(table[table["reward"] == title], title, last), key=f"chart-{name}",
                                alt=f"{title} over the steps")
                st.html(legend_html(SERIES_COLOURS))
    if rows:
        assert timing is not None
        with timing:
            st.altair_chart(time_chart(time_table(rows), last, seconds_an_iteration(rows)), key="chart-time",
                            alt="Seconds an iteration, split into its parts")
            st.html(legend_html(PHASE_COLOURS))


def _is_standardised(panels: Sequence[str]) -> bool:
    """The switch above the charts; several rewards start on one axis, one alone in its own units."""
    chosen = st.segmented_control(
        "Scores", [STANDARDISED, RAW], default=STANDARDISED if len(panels) > 1 else RAW, required=True, key="scores",
        bind="query-params", label_visibility="collapsed",
    )  # fmt: skip
    return chosen == STANDARDISED


def _draw_standardised(table: pd.DataFrame, panels: Sequence[str], scales: Mapping[str, Scale], last: int) -> None:
    titles = [words.reward_title(name) for name in panels if name in scales]
    colours = reward_colours(titles)
    st.altair_chart(standardised_chart(standardised_table(table, scales), colours, last), key="chart-standardised",
                    alt=f"{', '.join(titles)} over the steps, in standard deviations of the base model's scores")
    st.html(legend_html(colours))
    st.caption(STANDARDISED_NOTE)
    if alike := [words.reward_title(name) for name in panels if name not in scales]:
        st.caption(f"Not shown: {', '.join(alike)}, of which the base model's scores show no spread.")


@st.cache_data(show_spinner=False, max_entries=8)
def _scales(run_id: str, drawn_at: float) -> dict[str, Scale]:
    """What the run's scores are standardised by: the base model's, read anew only when they were drawn again."""
    with database().read() as session:
        return scales_of(sample.rewards for sample in samples_of(session, run_id, step=0))


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
