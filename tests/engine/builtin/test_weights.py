"""The committed folder is an ordinary diffusers pipeline, small, and draws what it is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from engine.builtin import WEIGHTS
from engine.builtin.checker import check
from engine.builtin.evaluate import draw, folder_bytes, open_pipeline

PROMPTS = [
    "a large red circle on a white background",
    "a blue square left of a yellow circle",
    "a green triangle above a purple square on a grey background",
    "an orange star on a black background",
]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    return open_pipeline(WEIGHTS)


def test_the_folder_is_small() -> None:
    assert folder_bytes(WEIGHTS) <= 20e6


def test_the_folder_says_nothing_of_the_machine_it_was_made_on() -> None:
    for path in Path(WEIGHTS).rglob("*.json"):
        json.loads(path.read_text())
        assert "/" not in str(json.loads(path.read_text()).get("_name_or_path", "")), path


def test_it_draws_what_it_is_asked_for(pipeline: StableDiffusion3Pipeline) -> None:
    images = draw(pipeline, PROMPTS, num_steps=10, guidance=4.0, seed=0)
    assert images.shape == (4, 64, 64, 3)
    assert np.mean([check(image, prompt).score for image, prompt in zip(images, PROMPTS, strict=True)]) >= 0.7


def test_a_plain_call_draws_the_same_scene(pipeline: StableDiffusion3Pipeline) -> None:
    """With every argument at its default, the prompt ends in 256 zero tokens instead of one."""
    generator = torch.Generator().manual_seed(3)
    image = pipeline(PROMPTS[0], num_inference_steps=8, guidance_scale=4.0, generator=generator).images[0]
    assert image.size == (64, 64)
    assert check(np.asarray(image), PROMPTS[0]).score >= 0.7


def test_words_it_does_not_know_are_unknown_not_errors(pipeline: StableDiffusion3Pipeline) -> None:
    ids = pipeline.tokenizer("A RED zebra").input_ids
    assert ids == pipeline.tokenizer("a red giraffe").input_ids
    assert pipeline.tokenizer.decode(ids[:2]) == "a red"
