"""What a run's page shows, made from rows of the store: gains over step 0, gallery rows, chart tables. No Streamlit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from app import words
from app.components.gallery import GalleryData, GalleryRow, ShownReward, Tile, column_order
from app.file_routes import sample_address
from engine.settings import RunSettings
from engine.standardised import Scale
from store.results import MetricRow, SampleRow, SampleStepRow

MAX_CHART_POINTS = 500
PHASES = ("sample", "decode", "score", "train")


@dataclass(frozen=True)
class Gain:
    """A held-out mean at step 0 and at the newest sampled step."""

    name: str
    title: str
    trained: bool
    first: float | None
    newest: float | None
    newest_step: int


def reward_names(settings: RunSettings, rows: Sequence[MetricRow], steps: Sequence[SampleStepRow]) -> list[str]:
    """Every reward the run has figures of: those in its settings first, in their order."""
    seen = {name for row in rows[-1:] for name in row.rewards} | {name for row in steps for name in row.rewards}
    given = [reward.key for reward in settings.rewards]
    return given + sorted(seen - set(given))


def gains(settings: RunSettings, steps: Sequence[SampleStepRow]) -> list[Gain]:
    """The gain of each reward, and of each further mean such as the all-correct share, over the base model."""
    if not steps:
        return []
    base = steps[0] if steps[0].step == 0 else None
    newest = steps[-1]
    trained = {reward.key for reward in settings.rewards if reward.weight > 0}
    names = reward_names(settings, [], steps)
    found = [
        Gain(name, words.reward_title(name), name in trained, base.rewards.get(name) if base else None,
             newest.rewards.get(name), newest.step)
        for name in names
    ]
    found += [
        Gain(name, words.reward_title(name), False,
             base.metrics.get(name) if base else None, value, newest.step)
        for name, value in newest.metrics.items()
    ]
    return found


def failed_scores(settings: RunSettings, rows: Sequence[MetricRow]) -> str:
    """How many training scores failed, and in how many iterations, in a sentence; "" if none did."""
    failed = [row.failed_scores for row in rows if row.failed_scores]
    if not failed:
        return ""
    asked = len(rows) * settings.grpo.prompts_per_iteration * settings.grpo.group_size * len(settings.rewards)
    return (
        f"{sum(failed):,} of {words.count(asked, 'score')} failed, in {len(failed):,} of "
        f"{words.count(len(rows), 'iteration')}; such images were left out of training. The log says why."
    )


def gallery_data(run_id: str, settings: RunSettings, samples: Sequence[SampleRow]) -> GalleryData:
    """The gallery of a run's samples, which come by step and index."""
    names = column_order(sorted({name for sample in samples for name in sample.rewards}),
                         [reward.key for reward in settings.rewards])
    columns: dict[int, SampleRow] = {}
    by_step: dict[int, dict[int, SampleRow]] = {}
    for sample in samples:
        columns.setdefault(sample.index, sample)
        by_step.setdefault(sample.step, {})[sample.index] = sample
    order = sorted(columns)
    rows = tuple(
        GalleryRow(step, tuple(_tile(tiles.get(index), names) for index in order))
        for step, tiles in sorted(by_step.items())
    )
    return GalleryData(
        run=run_id,
        url="/files/samples/",
        rewards=tuple(ShownReward(name, words.reward_title(name), words.digits_for(name)) for name in names),
        prompts=tuple(columns[index].prompt for index in order),
        seeds=tuple(columns[index].seed for index in order),
        rows=rows,
    )


def _tile(sample: SampleRow | None, names: Sequence[str]) -> Tile | None:
    if sample is None:
        return None
    return Tile(sample_address(sample.id, sample.path), tuple(sample.rewards.get(name) for name in names))


def reward_table(names: Sequence[str], rows: Sequence[MetricRow], steps: Sequence[SampleStepRow]) -> pd.DataFrame:
    """Columns step, reward, series, value, spread: each reward's training mean, its smoothing, and the held-out mean.

    `spread` is the standard deviation within a group, of a training mean that is not smoothed; NaN elsewhere.
    """
    parts: list[pd.DataFrame] = []
    for name in names:
        training = pd.Series({row.step: row.rewards[name] for row in rows if name in row.rewards}, dtype=float)
        if len(training):
            smooth = training.ewm(halflife=max(2.0, len(training) / 25)).mean()
            each = _thin(training)
            spreads = pd.Series({row.step: row.spreads.get(name) for row in rows}, dtype=float)
            parts += [_series(each, name, "Each iteration").assign(spread=spreads.loc[each.index].to_numpy()),
                      _series(_thin(smooth), name, "Training")]
        held_out = pd.Series({row.step: row.rewards[name] for row in steps if name in row.rewards}, dtype=float)
        if len(held_out):
            parts.append(_series(held_out, name, "Held-out prompts"))
    columns = ["step", "reward", "series", "value", "spread"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns) if parts else pd.DataFrame(columns=columns)


def standardised_table(table: pd.DataFrame, scales: Mapping[str, Scale]) -> pd.DataFrame:
    """The held-out and the smoothed rows of a `reward_table`, in standard deviations of the base model's scores.

    `scales` are by reward name; rewards without one are left out.
    """
    by_title = {words.reward_title(name): scale for name, scale in scales.items()}
    kept = table[table["reward"].isin(by_title) & (table["series"] != "Each iteration")]
    pairs = zip(kept["reward"], kept["value"], strict=True)
    return kept.assign(value=[by_title[title].standardised(value) for title, value in pairs])


def _series(values: pd.Series, name: str, series: str) -> pd.DataFrame:
    return pd.DataFrame({"step": values.index, "reward": words.reward_title(name), "series": series,
                         "value": values.to_numpy()})


def _thin(values: pd.Series) -> pd.Series:
    """At most MAX_CHART_POINTS points, evenly spaced, the newest always among them."""
    if len(values) <= MAX_CHART_POINTS:
        return values
    stride = -(-len(values) // MAX_CHART_POINTS)
    return values.iloc[(len(values) - 1) % stride :: stride]


def time_table(rows: Sequence[MetricRow], num_bins: int = 80) -> pd.DataFrame:
    """Columns step, until, phase, seconds: where an iteration's time went, averaged over equal stretches."""
    if not rows:
        return pd.DataFrame(columns=["step", "until", "phase", "seconds"])
    table = pd.DataFrame({"step": [row.step for row in rows]}
                         | {phase: [getattr(row, f"{phase}_seconds") for row in rows] for phase in PHASES})
    stride = -(-len(table) // num_bins)
    bins = table.groupby(table.index // stride)
    means = bins[list(PHASES)].mean().assign(step=bins["step"].first(), until=bins["step"].last())
    return means.melt(id_vars=["step", "until"], value_vars=list(PHASES), var_name="phase", value_name="seconds")


def seconds_an_iteration(rows: Sequence[MetricRow]) -> float | None:
    """The mean over the last ten iterations."""
    last = rows[-10:]
    if not last:
        return None
    return sum(getattr(row, f"{phase}_seconds") for row in last for phase in PHASES) / len(last)
