"""Rows of the store made ready for the page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.charts import reward_chart, reward_colours, standardised_chart, time_chart
from app.run_data import (
    MAX_CHART_POINTS,
    failed_scores,
    gains,
    gallery_data,
    reward_names,
    reward_table,
    seconds_an_iteration,
    standardised_table,
    time_table,
)
from engine.settings import RewardSettings, RunSettings
from engine.standardised import Scale
from store.results import MetricRow, SampleRow, SampleStepRow

SETTINGS = RunSettings(rewards=(RewardSettings(name="vividness"), RewardSettings(name="composition", weight=0.0)))


def metric(step: int, **rewards: float) -> MetricRow:
    return MetricRow(
        step=step, time=float(step), rewards=rewards, spreads=dict.fromkeys(rewards, 0.2), failed_scores=0, loss=0.1,
        grad_norm=1.0, ratio_drift=0.0, clipped_share=0.0, diversity=0.2, window_start=0,
        sample_seconds=1.0, decode_seconds=0.5, score_seconds=0.25, train_seconds=2.0, num_forwards=14,
        num_trained_steps=96, eta_seconds=None,
    )


def sample(step: int, index: int, **rewards: float) -> SampleRow:
    return SampleRow(step * 100 + index + 1, "r", step, index, f"prompt {index}", 1000 + index,
                     f"runs/r/1/samples/step-{step:06d}/{index:03d}.png", rewards)


def test_gains_compare_newest_with_step_0() -> None:
    steps = [SampleStepRow(0, 0.0, {"vividness": 0.8, "composition": 0.6}, {"all_correct": 0.3}, 1.0),
             SampleStepRow(10, 1.0, {"vividness": 1.2, "composition": 0.5}, {"all_correct": 0.2}, 1.0)]
    found = {gain.name: gain for gain in gains(SETTINGS, steps)}
    assert (found["vividness"].first, found["vividness"].newest, found["vividness"].trained) == (0.8, 1.2, True)
    assert found["composition"].trained is False
    assert (found["all_correct"].first, found["all_correct"].newest) == (0.3, 0.2)
    assert gains(SETTINGS, []) == []


def test_resumed_run_without_step_0_has_no_base() -> None:
    assert gains(SETTINGS, [SampleStepRow(20, 0.0, {"vividness": 1.0}, {}, 1.0)])[0].first is None


def test_failed_scores_are_told_if_there_are_any() -> None:
    rows = [metric(1), replace(metric(2), failed_scores=7), metric(3)]
    assert failed_scores(SETTINGS, [rows[0]]) == ""
    asked = 3 * SETTINGS.grpo.prompts_per_iteration * SETTINGS.grpo.group_size * 2
    assert failed_scores(SETTINGS, rows).startswith(f"7 of {asked:,} scores failed, in 1 of 3 iterations;")


def test_gallery_keeps_prompts_in_columns() -> None:
    samples = [sample(0, 0, vividness=0.5), sample(0, 1, vividness=0.6), sample(10, 1, vividness=0.9, composition=1.0)]
    data = gallery_data("r", SETTINGS, samples)
    assert data.prompts == ("prompt 0", "prompt 1")
    assert [row.step for row in data.rows] == [0, 10]
    assert data.rows[1].tiles[0] is None
    tile = data.rows[1].tiles[1]
    assert tile is not None
    # Rewards come in the order of the settings; the address begins with the row's id.
    assert [reward.name for reward in data.rewards] == ["vividness", "composition"]
    assert tile.scores == (0.9, 1.0)
    assert tile.file.startswith("1002/")
    plain = data.for_browser("10.1")
    assert plain["steps"][1]["tiles"][0] is None
    assert plain["steps"][0]["tiles"][0][1] == [0.5, None]
    assert plain["selected"] == "10.1"


def test_redrawn_image_has_another_address() -> None:
    """Browsers keep images for ever, and SQLite gives ids away again."""
    first = gallery_data("r", SETTINGS, [sample(0, 0, vividness=0.5)]).rows[0].tiles[0]
    again = SampleRow(1, "r", 0, 0, "prompt 0", 1000, "runs/r/2/samples/step-000000/000.png", {"vividness": 0.5})
    second = gallery_data("r", SETTINGS, [again]).rows[0].tiles[0]
    assert first is not None and second is not None
    assert first.file != second.file


def test_reward_table_holds_three_series() -> None:
    rows = [metric(step, vividness=float(step)) for step in range(1, 11)]
    steps = [SampleStepRow(0, 0.0, {"vividness": 0.5}, {}, 1.0)]
    table = reward_table(reward_names(SETTINGS, rows, steps), rows, steps)
    assert table.groupby("series").size().to_dict() == {"Each iteration": 10, "Training": 10, "Held-out prompts": 1}
    assert table.groupby("series")["spread"].count().to_dict()["Each iteration"] == 10, "of each iteration"
    assert table["spread"].count() == 10, "and of nothing else"
    smooth = table[table["series"] == "Training"]["value"]
    assert smooth.is_monotonic_increasing
    assert smooth.iloc[-1] < 10.0


def test_a_standardised_table_is_the_raw_one_in_the_base_models_spread() -> None:
    rows = [metric(step, vividness=2.0, compressibility=-3.0) for step in range(1, 4)]
    steps = [SampleStepRow(0, 0.0, {"vividness": 0.5, "compressibility": -3.0}, {}, 1.0),
             SampleStepRow(2, 0.0, {"vividness": 1.0, "compressibility": -3.0}, {}, 1.0)]
    raw = reward_table(["vividness", "compressibility"], rows, steps)
    table = standardised_table(raw, {"vividness": Scale(mean=0.5, std=0.25)})
    assert set(table["reward"]) == {"Vividness"}, "the other has no spread"
    assert table[table["series"] == "Held-out prompts"]["value"].to_list() == [0.0, 2.0]
    assert table[table["series"] == "Training"]["value"].to_list() == pytest.approx([6.0] * 3)
    assert set(table["series"]) == {"Held-out prompts", "Training"}
    assert standardised_table(raw, {}).empty


def test_long_runs_are_thinned_but_keep_the_newest() -> None:
    rows = [metric(step, vividness=1.0) for step in range(1, 5 * MAX_CHART_POINTS + 4)]
    each = reward_table(["vividness"], rows, []).query("series == 'Each iteration'")
    assert len(each) <= MAX_CHART_POINTS
    assert each["step"].max() == rows[-1].step


def test_missing_rewards_leave_gaps_not_errors() -> None:
    rows = [metric(1, vividness=1.0), metric(2)]
    assert set(reward_table(["vividness", "composition"], rows, [])["step"]) == {1}


def test_time_table_averages_stretches() -> None:
    table = time_table([metric(step, vividness=1.0) for step in range(1, 201)], num_bins=10)
    assert len(table) == 10 * 4
    assert table.groupby("step")["seconds"].sum().to_list() == pytest.approx([3.75] * 10)
    assert table["until"].max() == 200
    assert time_table([]).empty
    assert seconds_an_iteration([metric(1, vividness=1.0)]) == pytest.approx(3.75)
    assert seconds_an_iteration([]) is None


def test_charts_are_valid_vega() -> None:
    rows = [metric(step, vividness=float(step)) for step in range(1, 4)]
    steps = [SampleStepRow(0, 0.0, {"vividness": 0.5}, {}, 1.0)]
    chart = reward_chart(reward_table(["vividness"], rows, steps), "Vividness", 3).to_dict()
    assert chart["layer"][0]["mark"]["type"] == "rule"  # the base model's level
    without = reward_chart(reward_table(["vividness"], rows, []), "Vividness", 3).to_dict()
    assert all(layer["mark"]["type"] != "rule" for layer in without["layer"])
    table = standardised_table(reward_table(["vividness"], rows, steps), {"vividness": Scale(0.5, 0.1)})
    together = standardised_chart(table, reward_colours(["Vividness"]), 3).to_dict()
    assert together["layer"][0]["mark"]["type"] == "rule"
    assert len(set(reward_colours([str(number) for number in range(6)]).values())) == 6
    assert time_chart(time_table(rows), 3, 3.75).to_dict()["title"]["text"] == "Seconds an iteration, 3.8 of late"
