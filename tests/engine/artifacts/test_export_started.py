"""Exports of runs that were started from other weights than the base's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import save_file

from engine.artifacts.export import export_run
from engine.artifacts.export.header import read_header
from engine.models.source import sha256_of
from engine.settings_text import from_yaml

PROMPT = "a red circle"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        layers = [f"transformer.transformer_blocks.{i}.attn.to_v" for i in (0, 1)]
        tensors = {f"{layer}.lora_A.weight": 3 * torch.randn(4, 16) for layer in layers}
        tensors |= {f"{layer}.lora_B.weight": torch.randn(16, 4) for layer in layers}
    (tmp_path / "private").mkdir()
    save_file(tensors, tmp_path / "private" / "style.safetensors")
    return tmp_path / "private" / "style.safetensors"


@pytest.mark.parametrize("form", ["diffusers", "merged"])
def test_an_export_says_what_it_is_relative_to_and_is_right_there(
    tiny_run: Callable[..., Path], tiny_pipeline_folder: Path, lora: Path, tmp_path: Path, form: str
) -> None:
    (tmp_path / "base").symlink_to(tiny_pipeline_folder)
    run = tiny_run(model={"folder": str(tiny_pipeline_folder), "start_from": str(lora)})
    report = export_run(run, form, tmp_path / "out")
    assert report.max_difference <= 2
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder, dtype=torch.float32)
    plain = draw(pipeline, run)
    if form == "diffusers":
        pipeline.load_lora_weights(lora)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        assert difference(draw(pipeline, run), tile(run, 0)) <= 2
        pipeline.load_lora_weights(tmp_path / "out")
    else:
        folder = str(tmp_path / "out")
        pipeline.transformer = AutoModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    assert difference(draw(pipeline, run), tile(run, 2)) <= 2
    assert difference(plain, tile(run, 0)) > 8  # the start shows in the images

    base = f"tiny, started from style.safetensors (sha256 {sha256_of(lora)})"
    for file in (tmp_path / "out").rglob("*.safetensors"):
        header = read_header(file)
        assert header["palate.base_model"] == base
        assert "private" not in str(header)
    card = (tmp_path / "out" / "README.md").read_text()
    assert base in card and "private" not in card
    assert ("This adapter is relative to" in card) == (form == "diffusers")


def draw(pipeline: StableDiffusion3Pipeline, run: Path) -> np.ndarray:
    evaluation = from_yaml((run / "settings.yaml").read_text()).evaluation
    pipeline.set_progress_bar_config(disable=True)
    first = next(line for line in (run / "events.jsonl").read_text().splitlines() if '"samples"' in line)
    prompt = yaml.safe_load(first)["images"][0]["prompt"]
    image = pipeline(
        prompt, num_inference_steps=evaluation.num_steps, guidance_scale=evaluation.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(evaluation.seed),
    ).images[0]  # fmt: skip
    return np.asarray(image)


def tile(run: Path, step: int) -> np.ndarray:
    return np.asarray(Image.open(run / "samples" / f"step-{step:06d}" / "000.png"))


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())
