"""A run's gallery and a plain pipeline's images, to compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.settings_text import from_yaml


def tile(run: Path, step: int, index: int = 0) -> np.ndarray:
    return np.asarray(Image.open(run / "samples" / f"step-{step:06d}" / f"{index:03d}.png"))


def draw(pipeline: Any, run: Path, index: int = 0) -> np.ndarray:
    """The gallery's tile, by the call that the model card gives."""
    settings = from_yaml((run / "settings.yaml").read_text())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    prompt = next(event for event in events if event["kind"] == "samples")["images"][index]["prompt"]
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        prompt,
        num_inference_steps=settings.evaluation.num_steps,
        guidance_scale=settings.evaluation.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(settings.evaluation.seed + index),
    ).images[0]
    return np.asarray(image)


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())
