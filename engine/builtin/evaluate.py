"""Measure the built-in model against its gates, on captions that no training has seen, and draw what it draws.

    python -m engine.builtin.evaluate [--prompts 200 --steps 25 --guidance 1 4 --seed 1 --padding 1 256]

Writes `gates.json` and a grid of pictures for each guidance scale. `--padding` is diffusers' `max_sequence_length`: 256
is what a plain call uses, 1 is the cheap way; both are measured, since both must hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusion3Pipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engine.builtin import WEIGHTS
from engine.builtin.checker import ATTRIBUTES, check
from engine.builtin.prompts import held_out_prompts
from engine.builtin.scenes import SIDE

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "builtin"
BATCH = 25
GRID_TILES = (4, 8)  # rows and columns
ENLARGED = 3


@dataclass(frozen=True)
class Gates:
    """Share of captions (0..1) right in each attribute, among those that ask for it, and in all that is asked."""

    guidance: float
    padding: int
    num_prompts: int
    shares: dict[str, float]
    all_correct: float
    mean_score: float


def main() -> None:
    """Evaluate the weights from the command line."""
    parser = argparse.ArgumentParser(description="Measure the built-in model on unseen captions.")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--padding", type=int, nargs="+", default=[1], help="diffusers' max_sequence_length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    pipeline = open_pipeline(arguments.weights)
    prompts = held_out_prompts(arguments.prompts, arguments.seed)
    graded: list[Gates] = []
    seconds: dict[str, float] = {}
    for guidance in arguments.guidance:
        for padding in arguments.padding:
            images = draw(pipeline, prompts, arguments.steps, guidance, arguments.seed, padding=padding)
            graded.append(grade(images, prompts, guidance, padding))
            print(_line(graded[-1]), flush=True)
            if padding == arguments.padding[0]:
                rows, columns = GRID_TILES
                grid = draw_grid(images[: rows * columns], prompts[: rows * columns], columns)
                grid.save(arguments.to / f"grid_guidance_{guidance:g}.png")
            seconds[f"guidance {guidance:g}, padding {padding}"] = time_sixteen(
                pipeline, prompts, arguments.steps, guidance, padding
            )
    report = {
        "gates": [asdict(row) for row in graded],
        "steps": arguments.steps,
        "seed": arguments.seed,
        "seconds_for_16_images": seconds,
        "weights_megabytes": round(folder_bytes(arguments.weights) / 1e6, 2),
        "machine": _machine(),
    }
    (arguments.to / "gates.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(seconds))


def open_pipeline(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline folder in single precision, without diffusers' progress bars."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusion3Pipeline,
    prompts: list[str],
    num_steps: int,
    guidance: float,
    seed: int,
    *,
    padding: int = 1,
) -> NDArray[np.uint8]:
    """One picture for each prompt: uint8 (N, 64, 64, 3). The noise depends on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(prompts), BATCH):
        result = pipeline(
            prompts[start : start + BATCH],
            num_inference_steps=num_steps,
            guidance_scale=guidance,
            max_sequence_length=padding,
            generator=generator,
            output_type="np",
        )
        parts.append(np.rint(result.images * 255).astype(np.uint8))
    return np.concatenate(parts)


def grade(images: NDArray[np.uint8], prompts: list[str], guidance: float, padding: int) -> Gates:
    """Check every picture and take shares."""
    results = [check(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    shares = {}
    for name in ATTRIBUTES:
        asked = [name in result.right for result in results if name in result.asked]
        if asked:
            shares[name] = round(float(np.mean(asked)), 4)
    return Gates(
        guidance=guidance,
        padding=padding,
        num_prompts=len(prompts),
        shares=shares,
        all_correct=round(float(np.mean([result.correct for result in results])), 4),
        mean_score=round(float(np.mean([result.score for result in results])), 4),
    )


def time_sixteen(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], num_steps: int, guidance: float, padding: int
) -> float:
    """Seconds for 16 pictures, text and decoding included; the better of two runs."""
    times = []
    for _ in range(2):
        began = time.monotonic()
        draw(pipeline, (prompts * 16)[:16], num_steps, guidance, 0, padding=padding)
        times.append(time.monotonic() - began)
    return round(min(times), 3)


def draw_grid(images: NDArray[np.uint8], prompts: list[str], num_columns: int) -> Image.Image:
    """Enlarged pictures in rows, each with its caption beneath it."""
    tile, text_height, gap = SIDE * ENLARGED, 42, 8
    num_rows = -(-len(images) // num_columns)
    size = (num_columns * (tile + gap) + gap, num_rows * (tile + text_height + gap) + gap)
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        x = gap + (index % num_columns) * (tile + gap)
        y = gap + (index // num_columns) * (tile + text_height + gap)
        sheet.paste(Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS), (x, y))
        right = check(image, prompt).correct
        pen.text((x, y + tile + 2), textwrap.fill(prompt, 34), (40, 40, 40) if right else (200, 40, 40), font=font)
    return sheet


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _line(gates: Gates) -> str:
    """One row of the table for the terminal."""
    shares = "  ".join(f"{name} {share:.2f}" for name, share in gates.shares.items())
    head = f"guidance {gates.guidance:g} padding {gates.padding}"
    return f"{head}: {shares}  all correct {gates.all_correct:.3f}  score {gates.mean_score:.3f}"


def _machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
