"""Charts of a run: each reward over the steps, and where an iteration's time goes."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from app.run_data import PHASES

HELD_OUT, SMOOTHED, EACH = "Held-out prompts", "Training", "Each iteration"
SERIES_COLOURS = {HELD_OUT: "#c8643b", SMOOTHED: "#2b8580", EACH: "#8fb9b5"}
REWARD_COLOURS = ("#5b6fa8", "#7a8b3a", "#8c5a86", "#c8643b", "#2b8580", "#d9a441")
_PHASE_NAMES = {"sample": "Sampling", "decode": "Decoding", "score": "Scoring", "train": "Training"}
PHASE_COLOURS = {"Sampling": "#2b8580", "Decoding": "#8fc0bc", "Scoring": "#d9a441", "Training": "#c8643b"}


def reward_chart(table: pd.DataFrame, title: str, last_step: int, height: int = 230) -> alt.LayerChart:
    """One reward over the steps: training mean (pale, and smoothed), held-out means as points, step 0 as a level line.

    `table` holds the rows of `reward_table` for one reward; `last_step` is the right end of the axis.
    """
    colour = alt.Color("series:N", legend=None,
                       scale=alt.Scale(domain=list(SERIES_COLOURS), range=list(SERIES_COLOURS.values())))
    step = alt.X("step:Q", title=None, scale=alt.Scale(domain=[0, max(1, last_step)], nice=False),
                 axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    value = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))
    hint = [alt.Tooltip("series:N", title="Series"), alt.Tooltip("step:Q", title="Step"),
            alt.Tooltip("value:Q", title=title, format=".3f")]
    spread = alt.Tooltip("spread:Q", title="Standard deviation within a prompt's images", format=".3f")
    base = alt.Chart(table).encode(x=step, y=value, color=colour, tooltip=hint)
    held_out = base.transform_filter(alt.datum.series == HELD_OUT)
    layers = [
        base.transform_filter(alt.datum.series == EACH).mark_line(strokeWidth=1, opacity=0.55)
        .encode(tooltip=[*hint, spread]),
        base.transform_filter(alt.datum.series == SMOOTHED).mark_line(strokeWidth=2.2),
        held_out.mark_line(strokeWidth=2),
        held_out.mark_point(filled=True, size=46, opacity=1),
    ]
    start = table[(table["series"] == HELD_OUT) & (table["step"] == 0)]
    if len(start):
        level = alt.Chart(start).mark_rule(strokeDash=[4, 4], color=SERIES_COLOURS[HELD_OUT], opacity=0.6)
        layers.insert(0, level.encode(y="value:Q"))
    return alt.layer(*layers).properties(height=height, title=alt.TitleParams(title, anchor="start", fontSize=14))


def standardised_chart(
    table: pd.DataFrame, colours: Mapping[str, str], last_step: int, height: int = 230
) -> alt.LayerChart:
    """All rewards on one axis, in standard deviations of the base model's scores; the base model is the level line 0.

    `table` is a `standardised_table`: held-out means are drawn with points, smoothed training means thin and pale.
    `colours` are by reward title.
    """
    title = "Change in standard deviations of the base model"
    base = alt.Chart(table).encode(
        x=alt.X("step:Q", title=None, scale=alt.Scale(domain=[0, max(1, last_step)], nice=False),
                axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=5)),
        color=alt.Color("reward:N", legend=None,
                        scale=alt.Scale(domain=list(colours), range=list(colours.values()))),
        tooltip=[alt.Tooltip("reward:N", title="Reward"), alt.Tooltip("series:N", title="Series"),
                 alt.Tooltip("step:Q", title="Step"),
                 alt.Tooltip("value:Q", title="Standard deviations", format="+.2f")],
    )  # fmt: skip
    held_out = base.transform_filter(alt.datum.series == HELD_OUT)
    layers = [
        alt.Chart(pd.DataFrame({"value": [0.0]})).mark_rule(strokeDash=[4, 4], color="#8a8a8a").encode(y="value:Q"),
        base.transform_filter(alt.datum.series == SMOOTHED).mark_line(strokeWidth=1.2, opacity=0.5),
        held_out.mark_line(strokeWidth=2.2),
        held_out.mark_point(filled=True, size=46, opacity=1),
    ]
    return alt.layer(*layers).properties(height=height, title=alt.TitleParams(title, anchor="start", fontSize=14))


def reward_colours(titles: Sequence[str]) -> dict[str, str]:
    """A colour for each reward, in their order; past the last they begin again."""
    return {title: REWARD_COLOURS[place % len(REWARD_COLOURS)] for place, title in enumerate(titles)}


def time_chart(table: pd.DataFrame, last_step: int, lately: float | None, height: int = 230) -> alt.Chart:
    """Seconds an iteration, split by phase and stacked; `lately` is the mean of the newest iterations."""
    title = "Seconds an iteration" + (f", {lately:.1f} of late" if lately is not None else "")
    named = table.assign(phase=table["phase"].map(_PHASE_NAMES), order=table["phase"].map(PHASES.index))
    return (
        alt.Chart(named)
        .mark_area(interpolate="step-after", opacity=0.9)
        .encode(
            x=alt.X("step:Q", title=None, scale=alt.Scale(domain=[0, max(1, last_step)], nice=False),
                    axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
            y=alt.Y("seconds:Q", title=None, stack="zero", axis=alt.Axis(tickCount=5)),
            color=alt.Color("phase:N", legend=None,
                            scale=alt.Scale(domain=list(PHASE_COLOURS), range=list(PHASE_COLOURS.values()))),
            order="order:Q",
            tooltip=[alt.Tooltip("phase:N", title="Phase"), alt.Tooltip("step:Q", title="Step"),
                     alt.Tooltip("seconds:Q", title="Seconds", format=".2f")],
        )
        .properties(height=height, title=alt.TitleParams(title, anchor="start", fontSize=14))
    )


def legend_html(colours: Mapping[str, str]) -> str:
    """A legend that may wrap, for charts too narrow for their own."""
    entries = (
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>' for name, colour in colours.items()
    )
    return f'<div class="palate-legend">{"".join(entries)}</div>'
