"""Held-out reward against seconds of training: the recipes side by side, each at its own tuned learning rate.

`python benchmarks/learning.py --tune` tries learning rates for each recipe, on a seed the comparison does not use;
`python benchmarks/learning.py` then compares them at the best ones, three seeds each, all given the same seconds.

The built-in model, reward vividness, T = 10 steps, 4 prompts of 12 images an iteration, 96 held-out prompts; recipes
are their presets otherwise. Seconds are a single thread's processor time in training alone (sampling, decoding,
scoring, updating), which other work on the machine hardly changes; `--jobs` runs so many trainings at a time. Every
recipe begins once a seed before the next seed does. Writes benchmarks/results/learning_rates.json, learning.json and
learning.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import device_name, load_pyplot

from engine.events import Event, IterationDone, SamplesDrawn
from engine.presets import PRESETS
from engine.settings import RunSettings
from engine.train import train
from engine.versions import versions
from engine.work import mean_work

plt = load_pyplot()

RESULTS = Path(__file__).parent / "results"
BASELINE, REWARD = "dance_grpo", "vividness"
RECIPES = (
    BASELINE, "flow_grpo", "flow_grpo_fast", "mixgrpo", "mixgrpo_flash", "mixgrpo_flash_frozen", "turbo",
    "diffusion_nft",
)  # fmt: skip
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
NUM_STEPS, NUM_HELD_OUT, NUM_EVALUATIONS = 10, 96, 8
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
    preset["evaluation"] |= {"every": every, "num_prompts": NUM_HELD_OUT, "num_steps": NUM_STEPS}
    preset["compute"] |= {"num_threads": 1}
    preset["checkpoints"] |= {"every": MANY}
    preset |= {"seed": seed, "iterations": MANY, "rewards": [{"name": REWARD}, {"name": "composition", "weight": 0.0}]}
    return RunSettings.model_validate(preset)


@dataclass(frozen=True)
class Trial:
    """One training: a recipe, its seed and learning rate, and the seconds it is given."""

    name: str
    seed: int
    learning_rate: float
    budget: float
    seconds_a_forward: float


def learn(trial: Trial) -> list[dict[str, float]]:
    """Train for `budget` seconds; returns a row an evaluation, about `NUM_EVALUATIONS` of them."""
    work = mean_work(recipe_settings(trial.name, trial.seed, trial.learning_rate, 1))
    every = max(1, round(trial.budget / NUM_EVALUATIONS / (work.cost * trial.seconds_a_forward)))
    rows: list[dict[str, float]] = []
    spent, mark = 0.0, time.process_time()

    def watch(event: Event) -> None:
        nonlocal spent, mark
        now = time.process_time()
        if isinstance(event, IterationDone):
            spent += now - mark
        mark = now
        if isinstance(event, SamplesDrawn):
            figures = event.rewards | event.metrics
            rows.append({"step": event.step, "seconds": round(spent, 1)} | {k: round(v, 4) for k, v in figures.items()})

    with tempfile.TemporaryDirectory() as folder:
        settings = recipe_settings(trial.name, trial.seed, trial.learning_rate, every)
        # A run may end past its budget by less than it takes to reach its next evaluation.
        train(settings, Path(folder), watch, should_stop=lambda: rows[-1]["seconds"] >= trial.budget)
    return rows


def learn_all(trials: Sequence[Trial], jobs: int) -> Iterator[tuple[Trial, list[dict[str, float]]]]:
    """Every trial with its rows, in order, `jobs` at a time; tells how far it is."""
    begun = time.perf_counter()
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for done, (trial, rows) in enumerate(zip(trials, pool.map(learn, trials), strict=True), 1):
            left = (time.perf_counter() - begun) / done * (len(trials) - done) / 60
            reached = at(rows, trial.budget)
            print(f"{trial.name:22} seed {trial.seed}, rate {trial.learning_rate:g}: {reached:.3f}; "
                  f"{done} of {len(trials)}, about {left:.0f} min left", flush=True)  # fmt: skip
            yield trial, rows


def seconds_per_forward() -> float:
    """A thread's seconds for one forward of one image on this machine, from a short run of MixGRPO."""
    settings = recipe_settings("mixgrpo", 0, 1e-4, 1).model_copy(update={"iterations": 2})
    marks: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, IterationDone | SamplesDrawn):
            marks.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        train(settings, Path(folder), watch)
    # Samples of step 0, first iteration, its samples, second iteration, its samples.
    return (marks[3] - marks[2]) / mean_work(settings).cost


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


def tune(names: Sequence[str], rates: Sequence[float], budget: float, jobs: int, results: Path) -> None:
    """Recipes at learning rates, on one seed; writes what each reached beside what was tried before."""
    path = results / "learning_rates.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text())["reached"] if path.exists() else {}
    forward = seconds_per_forward()
    trials = [Trial(name, TUNING_SEED, rate, budget, forward) for rate in rates for name in names]
    for trial, rows in learn_all(trials, jobs):
        found.setdefault(trial.name, {})[f"{trial.learning_rate:g}"] = round(at(rows, budget), 4)
        report = {"device": device_name(), "versions": versions(), "seconds": budget, "seed": TUNING_SEED}
        path.write_text(json.dumps(report | {"reached": found}, indent=1) + "\n")


def compare(seeds: list[int], budget: float, jobs: int, results: Path) -> None:
    """Every recipe and seed at its best learning rate; writes and draws after each seed."""
    reached = json.loads((results / "learning_rates.json").read_text())["reached"]
    rates = {name: float(max(reached[name], key=reached[name].__getitem__)) for name in RECIPES}
    forward = seconds_per_forward()
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    trials = [Trial(name, seed, rates[name], budget, forward) for seed in seeds for name in RECIPES]
    for trial, rows in learn_all(trials, jobs):
        curves[trial.name].append({"seed": trial.seed, "curve": rows})
        if trial.name != RECIPES[-1]:
            continue
        report = {
            "device": device_name(), "versions": versions(), "seconds": budget, "jobs": jobs, "learning_rates": rates,
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
    axis.set_xlabel("minutes of training, one thread")
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
    parser.add_argument("--seconds", type=float, default=150.0, help="training seconds of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, of one thread each")
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES, help="which learning rates to tune")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES, help="which to tune")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.tune:
        tune(arguments.recipes, arguments.rates, arguments.seconds, arguments.jobs, arguments.results)
    else:
        compare(arguments.seeds, arguments.seconds, arguments.jobs, arguments.results)


if __name__ == "__main__":
    main()
