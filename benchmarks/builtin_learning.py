"""Does it learn? The built-in model's presets, on held-out prompts and fixed seeds, several seeds each.

`python benchmarks/builtin_learning.py --preset builtin_vividness --seeds 0 1 2`

Writes to benchmarks/results/learning/: `<preset>.json` (settings, every evaluation, seconds, versions, device),
`<preset>.png` (curves), and `<preset>-grid.png` (the same prompts and seeds before and after). Seconds are those of
training alone: sampling, decoding, scoring, updating; evaluations of the 96 held-out prompts are left out and reported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import device_name, load_pyplot
from PIL import Image, ImageDraw

from engine.events import Event, IterationDone, SamplesDrawn
from engine.presets import PRESETS
from engine.settings import RunSettings
from engine.train import train
from engine.versions import versions

plt = load_pyplot()

RESULTS = Path(__file__).parent / "results" / "learning"
NUM_HELD_OUT, NUM_EVALUATIONS = 96, 8
NUM_SHOWN = 12


def learn(settings: RunSettings, out: Path) -> dict[str, Any]:
    """Run once; returns the curve: a row an evaluation, with the training seconds spent before it."""
    rows: list[dict[str, Any]] = []
    spent, evaluating, begun = 0.0, 0.0, time.perf_counter()

    def watch(event: Event) -> None:
        nonlocal spent, evaluating
        if isinstance(event, IterationDone):
            phases = event.seconds
            spent += phases.sample + phases.decode + phases.score + phases.train
        if isinstance(event, SamplesDrawn):
            evaluating += event.seconds
            rows.append({"step": event.step, "seconds": round(spent, 1), **_rounded(event.rewards | event.metrics)})
            print(rows[-1], flush=True)

    train(settings, out, watch)
    total = time.perf_counter() - begun
    return {"seed": settings.seed, "curve": rows, "seconds": _rounded({"total": total, "evaluation": evaluating})}


def measure(preset: str, seeds: list[int], changes: dict[str, Any], results: Path) -> None:
    """Run a preset for every seed, and write table, curves and grid after each."""
    base = PRESETS[preset].make().model_dump()
    looks = {"every": max(10, base["iterations"] // NUM_EVALUATIONS), "num_prompts": NUM_HELD_OUT}
    base = _merged(base, {"evaluation": looks}, changes)
    results.mkdir(parents=True, exist_ok=True)
    runs = _runs_of_other_seeds(results / f"{preset}.json", RunSettings.model_validate(base), seeds)
    for seed in seeds:
        settings = RunSettings.model_validate(base | {"seed": seed})
        out = Path(tempfile.mkdtemp(prefix=f"{preset}-{seed}-"))
        runs = sorted([*runs, learn(settings, out)], key=lambda run: int(run["seed"]))
        report = {
            "preset": preset,
            "device": device_name(),
            "versions": versions(),
            "held_out_prompts": NUM_HELD_OUT,
            "settings": _without_seed(settings),
            "runs": runs,
        }
        (results / f"{preset}.json").write_text(json.dumps(report, indent=1) + "\n")
        _draw_curves(preset, runs, results / f"{preset}.png")
        if seed == seeds[0]:
            _draw_grid(settings, out, results / f"{preset}-grid.png")
        shutil.rmtree(out)


def _runs_of_other_seeds(report: Path, settings: RunSettings, seeds: list[int]) -> list[dict[str, Any]]:
    """Runs already measured with these settings, versions and device: seeds can be measured one after another."""
    if not report.exists():
        return []
    found = json.loads(report.read_text())
    if (found["settings"], found["versions"], found["device"]) != (_without_seed(settings), versions(), device_name()):
        return []
    return [run for run in found["runs"] if run["seed"] not in seeds]


def _without_seed(settings: RunSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"seed"})


def _merged(base: dict[str, Any], *changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for change in changes:
        for key, value in change.items():
            merged[key] = merged[key] | value if isinstance(value, dict) else value
    return merged


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _draw_curves(preset: str, runs: list[dict[str, Any]], path: Path) -> None:
    """One panel a measure, one line a seed, against minutes of training."""
    names = [name for name in runs[0]["curve"][0] if name not in ("step", "seconds")]
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for run in runs:
            minutes = [row["seconds"] / 60 for row in run["curve"]]
            axis.plot(minutes, [row[name] for row in run["curve"]], marker=".", label=f"seed {run['seed']}")
        axis.axhline(runs[0]["curve"][0][name], color="grey", linewidth=0.8, linestyle=":")
        axis.set_title(name.replace("_", " "), loc="left", fontsize=11)
        axis.set_xlabel("minutes of training")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{preset}: {NUM_HELD_OUT} held-out prompts", fontsize=12, x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_grid(settings: RunSettings, out: Path, path: Path) -> None:
    """Before (first row) and after (last row), the same prompt and seed down a column."""
    folders = sorted((out / "samples").iterdir())
    rows = [folders[0], folders[len(folders) // 2], folders[-1]]
    side, label = 96, 64
    sheet = Image.new("RGB", (label + NUM_SHOWN * (side + 4), len(rows) * (side + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, folder in enumerate(rows):
        draw.text((4, i * (side + 4) + side // 2 - 6), f"step {int(folder.name.split('-')[1])}", fill="black")
        for j in range(NUM_SHOWN):
            tile = Image.open(folder / f"{j:03d}.png").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (label + j * (side + 4), i * (side + 4)))
    sheet.save(path)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True, choices=[name for name in PRESETS if name.startswith("builtin")])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--changes", type=json.loads, default={}, help="JSON of settings to change, for a trial")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    measure(arguments.preset, arguments.seeds, arguments.changes, arguments.results)


if __name__ == "__main__":
    main()
