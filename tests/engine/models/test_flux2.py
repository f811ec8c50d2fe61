"""What FLUX.2's adapters have of their own; the rest is in test_families.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models import load_model
from engine.models.pipelines import open_pipeline
from engine.settings import ModelName
from tests.engine.models import tiny_pipelines
from tests.engine.models.families import PROMPTS, Family, call, difference, draw, open_model

DISTILLED = Family("flux2_klein", lambda: tiny_pipelines.flux2_klein(is_distilled=True), (1.0,))


def saved(make: Callable[[], Any], folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(folder)
    return folder


def test_the_distilled_klein_draws_what_its_plain_call_draws(tmp_path: Path) -> None:
    folder = saved(DISTILLED.make, tmp_path / "klein")
    expected = call(DISTILLED, open_pipeline(folder, torch.float32), PROMPTS, 4, 1.0, seed=7)
    assert difference(draw(open_model(DISTILLED, folder), PROMPTS, 4, 1.0, seed=7), expected) <= 1


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("flux2_klein", DISTILLED.make, "klein is distilled and takes none"),
        ("flux2", lambda: tiny_pipelines.flux2(guidance_embeds=False), "FLUX.2 model takes none"),
    ],
)
def test_a_model_without_guidance_refuses_a_scale(
    name: ModelName, make: Callable[[], Any], sentence: str, tmp_path: Path
) -> None:
    model = open_model(Family(name, make, (1.0,)), saved(make, tmp_path / "model"))
    embeddings, noise = model.encode(PROMPTS[:1]), model.noise(torch.Generator(), 1)
    row = torch.zeros(1, dtype=torch.long)
    assert model.velocity(noise, 0.5, embeddings, row, 1.0).shape == noise.shape
    with pytest.raises(ValueError, match=sentence):
        model.velocity(noise, 0.5, embeddings, row, 4.0)


def test_without_torchvision_the_processor_is_replaced_by_its_tokenizer(tmp_path: Path) -> None:
    """The published folder names a processor of texts and images that transformers has only with torchvision."""
    family = Family("flux2", tiny_pipelines.flux2, (1.0,))
    folder = saved(family.make, tmp_path / "flux2")
    expected = open_model(family, folder).encode(PROMPTS).texts["tokens"]
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "tokenizer" / "processor_config.json").write_text(json.dumps({"processor_class": "PixtralProcessor"}))
    assert torch.equal(load_model(family.settings(folder)).encode(PROMPTS).texts["tokens"], expected)


@pytest.mark.parametrize(("side", "steps"), [(64, 10), (64, 50), (256, 28)])
def test_the_grid_is_shifted_by_tokens_and_steps(side: int, steps: int, tmp_path: Path) -> None:
    """By the published lines: μ at 10 and at 200 steps, each linear in the tokens, of 4×4 pixels here."""
    family = Family("flux2", tiny_pipelines.flux2, (1.0,), side=side)
    tokens = (side // 4) ** 2
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    mu = at_10 + (at_200 - at_10) * (steps - 10) / 190
    times = [1 - i / steps for i in range(steps)]
    expected = [math.exp(mu) / (math.exp(mu) + 1 / time - 1) for time in times] + [0.0]
    grid = open_model(family, saved(family.make, tmp_path / "flux2")).sigmas(steps)
    assert grid.tolist() == pytest.approx(expected, abs=1e-6)
