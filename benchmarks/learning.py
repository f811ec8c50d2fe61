"""Held-out reward against seconds of training: the recipes side by side, each at its own tuned learning rate.

`python benchmarks/learning.py --tune` tries learning rates for each recipe, on a seed the comparison does not use;
`python benchmarks/learning.py` then compares them at the best ones, three seeds each, all given the same seconds.

The built-in model, reward vividness, T = 10 steps, 4 prompts of 12 images an iteration, 96 held-out prompts; recipes
are their presets otherwise. Seconds are those of training alone: sampling, decoding, scoring, updating. Every recipe
runs once a seed before the next seed begins, so that a slow hour of the machine meets them all. Writes
benchmarks/results/learning_rates.json, learning.json and learning.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from measuring import device_name

from engine.events import Event, IterationDone, SamplesDrawn
from engine.presets import PRESETS
from engine.settings import RunSettings
from engine.train import train
from engine.versions import versions
from engine.work import mean_work

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
BASELINE, REWARD = "dance_grpo", "vividness"
RECIPES = (BASELINE, "flow_grpo_fast", "mixgrpo", "mixgrpo_flash", "mixgrpo_flash_frozen", "turbo", "diffusion_nft")
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
NUM_STEPS, NUM_HELD_OUT, NUM_EVALUATIONS = 10, 96, 10
TUNING_SEED = 100
MANY = 1_000_000  # iterations: seconds end a run


def recipe_settings(name: str, seed: int, learning_rate: float, every: int) -> RunSettings:
    """The recipe on the built-in model with ten steps; a window keeps its share of them."""
    preset = PRESETS[name].make().model_dump()
    full = preset["window"]["size"] == preset["sampling"]["num_steps"] - 1
    preset["window"] |= {"size": NUM_STEPS - 1 if full else min(preset["window"]["size"], 4), "last": None}
    preset["window"] |= {"iterations_per_position": 5}
    preset["sampling"] |= {"num_steps": NUM_STEPS}
    preset["model"] |= {"precision": "bfloat16"}
    preset["grpo"] |= {"prompts_per_iteration": 4, "updates_per_iteration": 2}
    preset["optimiser"] |= {"learning_rate": learning_rate}
    preset["evaluation"] |= {"every": every, "num_prompts": NUM_HELD_OUT}
    preset["checkpoints"] |= {"every": MANY}
    preset |= {"seed": seed, "iterations": MANY, "rewards": [{"name": REWARD}, {"name": "composition", "weight": 0.0}]}
    return RunSettings.model_validate(preset)


def learn(
    name: str, seed: int, learning_rate: float, budget: float, seconds_a_forward: float
) -> list[dict[str, float]]:
    """Train for `budget` seconds; returns a row an evaluation, about `NUM_EVALUATIONS` of them."""
    iteration = mean_work(recipe_settings(name, seed, learning_rate, 1)).cost * seconds_a_forward
    every = max(1, round(budget / NUM_EVALUATIONS / iteration))
    rows: list[dict[str, float]] = []
    spent = 0.0

    def watch(event: Event) -> None:
        nonlocal spent
        if isinstance(event, IterationDone):
            phases = event.seconds
            spent += phases.sample + phases.decode + phases.score + phases.train
        if isinstance(event, SamplesDrawn):
            figures = event.rewards | event.metrics
            rows.append({"step": event.step, "seconds": round(spent, 1)} | {k: round(v, 4) for k, v in figures.items()})

    with tempfile.TemporaryDirectory() as folder:
        settings = recipe_settings(name, seed, learning_rate, every)
        # A run may end past its budget by less than it takes to reach its next evaluation.
        train(settings, Path(folder), watch, should_stop=lambda: spent >= budget and rows[-1]["seconds"] >= budget)
    return rows


def seconds_per_forward() -> float:
    """Seconds of one forward of one image on this machine, from a short run of MixGRPO."""
    settings = recipe_settings("mixgrpo", 0, 1e-4, 1).model_copy(update={"iterations": 2})
    seconds: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, IterationDone):
            seconds.append(event.seconds.sample + event.seconds.train)

    with tempfile.TemporaryDirectory() as folder:
        train(settings, Path(folder), watch)
    return seconds[-1] / mean_work(settings).cost


def at(rows: list[dict[str, float]], seconds: float) -> float:
    """The held-out reward after that many seconds, by straight lines between evaluations."""
    for before, after in pairwise(rows):
        if before["seconds"] <= seconds <= after["seconds"]:
            share = (seconds - before["seconds"]) / (after["seconds"] - before["seconds"])
            return before[REWARD] + share * (after[REWARD] - before[REWARD])
    return rows[-1][REWARD]


def seconds_to(rows: list[dict[str, float]], reward: float) -> float | None:
    """The first moment the held-out reward is reached, by straight lines; None if it never is."""
    for before, after in pairwise(rows):
        if after[REWARD] >= reward:
            share = (reward - before[REWARD]) / (after[REWARD] - before[REWARD])
            return before["seconds"] + max(0.0, share) * (after["seconds"] - before["seconds"])
    return None


def tune(budget: float, results: Path) -> None:
    """Every recipe at every learning rate, on one seed; writes what each reached."""
    forward = seconds_per_forward()
    found: dict[str, dict[str, float]] = {name: {} for name in RECIPES}
    for learning_rate in LEARNING_RATES:
        for name in RECIPES:
            rows = learn(name, TUNING_SEED, learning_rate, budget, forward)
            found[name][f"{learning_rate:g}"] = round(at(rows, budget), 4)
            print(f"{name:24} {learning_rate:g}: {at(rows, budget):.3f}", flush=True)
            report = {"device": device_name(), "versions": versions(), "seconds": budget, "seed": TUNING_SEED}
            (results / "learning_rates.json").write_text(json.dumps(report | {"reached": found}, indent=1) + "\n")


def compare(seeds: list[int], budget: float, results: Path) -> None:
    """Every recipe and seed at its best learning rate; writes and draws after each."""
    reached = json.loads((results / "learning_rates.json").read_text())["reached"]
    rates = {name: float(max(tried, key=tried.__getitem__)) for name, tried in reached.items()}
    forward = seconds_per_forward()
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    total, begun = len(RECIPES) * len(seeds), time.perf_counter()
    for seed in seeds:
        for name in RECIPES:
            rows = learn(name, seed, rates[name], budget, forward)
            curves[name].append({"seed": seed, "curve": rows})
            done = sum(len(runs) for runs in curves.values())
            left = (time.perf_counter() - begun) / done * (total - done)
            print(f"{name:24} seed {seed}: {at(rows, budget):.3f}; about {left / 60:.0f} min left", flush=True)
        report = {
            "device": device_name(), "versions": versions(), "seconds": budget, "learning_rates": rates,
            "summary": summarise(curves, budget), "runs": curves,
            "settings": {
                name: recipe_settings(name, 0, rates[name], 1).model_dump(mode="json", exclude={"seed"})
                for name in RECIPES
            },
        }  # fmt: skip
        (results / "learning.json").write_text(json.dumps(report, indent=1) + "\n")
        draw(curves, budget, report["device"], results / "learning.png")


def summarise(curves: dict[str, list[dict[str, Any]]], budget: float) -> dict[str, dict[str, Any]]:
    """By recipe: final reward (mean and spread over seeds), and the share of DanceGRPO's time to its final reward."""
    finals = {name: [at(run["curve"], budget) for run in runs] for name, runs in curves.items()}
    goal = statistics.fmean(finals[BASELINE])
    summary: dict[str, dict[str, Any]] = {}
    for name, runs in curves.items():
        times = [seconds_to(run["curve"], goal) for run in runs]
        summary[name] = {
            "final": round(statistics.fmean(finals[name]), 4),
            "final_spread": round(statistics.stdev(finals[name]), 4) if len(runs) > 1 else None,
            "share_of_baseline_time": [None if moment is None else round(moment / budget, 3) for moment in times],
        }
    return summary


def draw(curves: dict[str, list[dict[str, Any]]], budget: float, device: str, path: Path) -> None:
    """A line a run, a colour a recipe."""
    figure, axis = plt.subplots(figsize=(8.5, 4.8))
    colours = plt.get_cmap("tab10")
    for place, (name, runs) in enumerate(curves.items()):
        for number, run in enumerate(runs):
            minutes = [row["seconds"] / 60 for row in run["curve"]]
            axis.plot(minutes, [row[REWARD] for row in run["curve"]], color=colours(place), linewidth=1.3,
                      label=None if number else name)  # fmt: skip
    goal = statistics.fmean(at(run["curve"], budget) for run in curves[BASELINE])
    axis.axhline(goal, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlabel("minutes of training")
    axis.set_ylabel(f"{REWARD}, {NUM_HELD_OUT} held-out prompts")
    axis.set_title(f"Built-in model, T = {NUM_STEPS}, {device}", loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Parse the command line; tune or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="try learning rates instead of comparing")
    parser.add_argument("--seconds", type=float, default=240.0, help="training seconds of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.tune:
        tune(arguments.seconds, arguments.results)
    else:
        compare(arguments.seeds, arguments.seconds, arguments.results)


if __name__ == "__main__":
    main()
