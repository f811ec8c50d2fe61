"""What an iteration of each recipe costs: seconds and counted forwards, side by side and interleaved.

`python benchmarks/recipes.py [--rounds 12] [--prompts 1] [--tunings full lora]`

The built-in model, T = 25, G = 12, full fine-tuning and LoRA, decode and scoring included. Every round runs one
iteration of each recipe, its window at the next of its positions, so that a moving window is averaged over its range
and a busy moment of the machine falls on all alike. Writes benchmarks/results/recipes.json and recipes.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import at_round, device_name, load_pyplot

from engine.presets import PRESETS
from engine.run import Run, prepare
from engine.settings import RunSettings
from engine.train import sample_and_score, update
from engine.versions import versions
from engine.work import work_at

plt = load_pyplot()

RESULTS = Path(__file__).parent / "results"
BASELINE = "dance_grpo"
UNSHARED = "mixgrpo, no shared prefix"
RECIPES = (
    BASELINE, "flow_grpo", "flow_grpo_fast", UNSHARED, "mixgrpo", "mixgrpo_flash", "mixgrpo_flash_frozen", "turbo",
)  # fmt: skip
TUNINGS = ("full", "lora")
# Ratios of seconds to DanceGRPO: what this project set out to reach (counted for full fine-tuning without gradient
# checkpointing), and what MixGRPO's paper measured on its GPUs, with it.
GOALS = {"mixgrpo": 0.45, "mixgrpo_flash": 0.36, "mixgrpo_flash_frozen": 0.34, "turbo": 0.20}
PAPER = {"mixgrpo": 0.52, "mixgrpo_flash": 0.39, "mixgrpo_flash_frozen": 0.29}


def recipe_settings(name: str, num_prompts: int, tuning: str) -> RunSettings:
    """The recipe on the built-in model, in bfloat16, everything else as its preset has it."""
    preset = PRESETS["mixgrpo" if name == UNSHARED else name].make().model_dump()
    preset["grpo"] |= {"prompts_per_iteration": num_prompts}
    preset["model"] |= {"precision": "bfloat16"}
    preset["tuning"] |= {"method": tuning}
    preset["sampling"] |= {"shared_prefix": False} if name == UNSHARED else {}
    preset |= {"rewards": [{"name": "vividness"}, {"name": "composition"}]}
    return RunSettings.model_validate(preset)


def measure_iteration(run: Run, settings: RunSettings) -> dict[str, float]:
    """One iteration under `settings`: seconds by phase, counted work, and what the formulas expect."""
    run.settings = settings
    run.counter.take()
    begun = time.perf_counter()
    batch = sample_and_score(run)
    stats = update(run, batch)
    run.step += 1
    seconds = time.perf_counter() - begun
    expected = work_at(settings, batch.rollout.plan.window_start)
    return {
        "seconds": seconds,
        "sample": batch.seconds["sample"],
        "decode": batch.seconds["decode"],
        "score": batch.seconds["score"],
        "train": seconds - sum(batch.seconds.values()),
        "forwards": run.counter.take(),
        "trained_steps": stats.num_trained,
        "expected_forwards": expected.rollout + expected.reference,
        "expected_cost": expected.cost,
    }


def measure(rounds: int, num_prompts: int, tuning: str) -> dict[str, list[dict[str, float]]]:
    """Every recipe's iterations, in rounds; a first one of each, to warm up, is not counted."""
    settings = {name: recipe_settings(name, num_prompts, tuning) for name in RECIPES}
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: prepare(recipe, Path(folder), lambda _: None, None) for name, recipe in settings.items()}
        for name in RECIPES:
            measure_iteration(runs[name], at_round(settings[name], 0, 1))
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in RECIPES}
        for place in range(rounds):
            begun = time.perf_counter()
            for name in RECIPES:
                rows[name].append(measure_iteration(runs[name], at_round(settings[name], place, rounds)))
            seconds = time.perf_counter() - begun
            left = seconds * (rounds - place - 1)
            print(f"{tuning}, round {place + 1} of {rounds}: {seconds:.1f} s, about {left:.0f} s left", flush=True)
    return rows


def peak_memory(name: str, num_prompts: int, tuning: str) -> float:
    """MiB: the largest resident size of a process of its own that runs an iteration of the recipe."""
    command = [sys.executable, __file__, "--prompts", str(num_prompts), "--only", name, "--tunings", tuning]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return float(done.stdout)


def run_only(name: str, num_prompts: int, tuning: str) -> None:
    """One iteration of one recipe; prints the most memory its process had, in MiB."""
    settings = recipe_settings(name, num_prompts, tuning)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(settings, Path(folder), lambda _: None, None)
        measure_iteration(run, at_round(settings, 0, 1))
    # A process's ru_maxrss begins with its parent's; the high-water mark is its own.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)


def summarise(rows: dict[str, list[dict[str, float]]], memory: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Means by recipe, and each as a ratio to DanceGRPO."""
    means = {
        name: {key: statistics.fmean(row[key] for row in recipe) for key in recipe[0]} for name, recipe in rows.items()
    }
    base = means[BASELINE]
    # The spread of a ratio, from the rounds' own: both iterations of a round share its moment.
    ratios = {
        name: [row["seconds"] / other["seconds"] for row, other in zip(recipe, rows[BASELINE], strict=True)]
        for name, recipe in rows.items()
    }
    return {
        name: {
            **{key: round(value, 4) for key, value in mean.items()},
            "ratio_of_seconds": round(mean["seconds"] / base["seconds"], 4),
            "ratio_spread": round(statistics.stdev(ratios[name]), 4),
            "ratio_of_counted_cost": round(mean["expected_cost"] / base["expected_cost"], 4),
            "peak_memory_mib": round(memory[name]),
            "goal": GOALS.get(name),
            "paper": PAPER.get(name),
        }
        for name, mean in means.items()
    }


def draw(summaries: dict[str, dict[str, dict[str, Any]]], device: str, path: Path) -> None:
    """A panel a tuning: seconds an iteration by phase, with the ratio to DanceGRPO."""
    figure, axes = plt.subplots(len(summaries), 1, figsize=(8.5, 3.6 * len(summaries)), squeeze=False)
    for axis, (tuning, summary) in zip(axes[:, 0], summaries.items(), strict=True):
        _draw_panel(axis, summary)
        axis.set_title(f"{tuning}: built-in model, T = 25, G = 12, {device}", loc="left", fontsize=11)
    axes[0, 0].legend(frameon=False, fontsize=9, loc="lower right")
    axes[-1, 0].set_xlabel(f"seconds an iteration; the figure is the ratio to {BASELINE}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(axis: Any, summary: dict[str, dict[str, Any]]) -> None:
    names = list(summary)
    left = [0.0] * len(names)
    colours = {"sample": "#4878a8", "train": "#d98845", "decode": "#8fb174", "score": "#b8a0c8"}
    for phase, colour in colours.items():
        widths = [summary[name][phase] for name in names]
        axis.barh(names, widths, left=left, color=colour, label=phase)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, name in enumerate(names):
        goal = summary[name]["goal"]
        aim = f" (goal {goal:.2f})" if goal else ""
        axis.text(left[place], place, f"  {summary[name]['ratio_of_seconds']:.2f}{aim}", va="center", fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2 * max(left))
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Parse the command line, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=1, help="prompts an iteration, of 12 images each")
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=RECIPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: a spread needs two rounds or more")
    if arguments.only:
        run_only(arguments.only, arguments.prompts, arguments.tunings[0])
        return
    summaries = {}
    for tuning in arguments.tunings:
        rows = measure(arguments.rounds, arguments.prompts, tuning)
        memory = {name: peak_memory(name, arguments.prompts, tuning) for name in RECIPES}
        summaries[tuning] = summarise(rows, memory)
    report = {
        "device": device_name(), "versions": versions(), "rounds": arguments.rounds, "prompts": arguments.prompts,
        "recipes": summaries,
        "settings": {
            name: recipe_settings(name, arguments.prompts, arguments.tunings[0]).model_dump(mode="json")
            for name in RECIPES
        },
    }  # fmt: skip
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "recipes.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(summaries, report["device"], arguments.results / "recipes.png")
    for tuning, summary in summaries.items():
        for name, figures in summary.items():
            print(f"{tuning:5} {name:28} {figures['seconds']:7.2f} s  {figures['ratio_of_seconds']:.3f} of {BASELINE}")


if __name__ == "__main__":
    main()
