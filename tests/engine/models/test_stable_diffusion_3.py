"""The adapter against the plain diffusers pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from engine.models import load_model, model_folder
from engine.models.stable_diffusion_3 import StableDiffusion3
from engine.sampling.rollout import sample_ode
from engine.settings import ModelSettings

PROMPTS = ["a red circle", "a blue star left of a green square"]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_draws_what_the_plain_pipeline_call_draws(tiny_pipeline_folder: Path, guidance_scale: float) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    expected = [
        np.asarray(
            pipeline(
                prompt,
                num_inference_steps=6,
                guidance_scale=guidance_scale,
                generator=torch.Generator().manual_seed(7 + i),
            ).images[0]
        )
        for i, prompt in enumerate(PROMPTS)
    ]

    model = StableDiffusion3.from_folder(tiny_pipeline_folder, ModelSettings())
    embeddings = model.encode(PROMPTS)
    assert embeddings.texts["tokens"].shape[1] == 8 + 1, "256 zero tokens are computed as one"
    noise = torch.cat([model.noise(torch.Generator().manual_seed(7 + i), 1) for i in range(len(PROMPTS))])
    latents = sample_ode(
        lambda x, sigma, rows: model.velocity(x, sigma, embeddings, rows, guidance_scale).detach(),
        noise, torch.arange(len(PROMPTS)), tuple(model.sigmas(6).tolist()), micro_batch=1,
    )  # fmt: skip
    drawn = model.decode(latents)
    assert np.abs(drawn.astype(int) - np.stack(expected).astype(int)).max() <= 1
    assert drawn.std() > 5, "the random model draws something to compare"


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a diffusers pipeline folder"):
        load_model(ModelSettings(folder=str(tmp_path)))


def test_the_family_brings_its_own_folder() -> None:
    assert model_folder(ModelSettings()).name == "weights"


def test_the_resolution_is_the_images(tiny_pipeline_folder: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.transformer.register_to_config(sample_size=4)
    pipeline.save_pretrained(folder := tiny_pipeline_folder.parent / "small")
    assert StableDiffusion3.from_folder(folder, ModelSettings()).noise(torch.Generator(), 1).shape == (1, 4, 4, 4)
    model = StableDiffusion3.from_folder(folder, ModelSettings(resolution=16))
    latents = model.noise(torch.Generator(), 2)
    assert latents.shape == (2, 4, 8, 8)
    velocity = model.velocity(latents, 0.5, model.encode(PROMPTS), torch.arange(2), 1.0).detach()
    assert model.decode(velocity).shape == (2, 16, 16, 3)


def test_a_resolution_the_model_cannot_draw_is_refused(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.resolution is 64, but this model draws multiples of 4 up to 32"):
        StableDiffusion3.from_folder(tiny_pipeline_folder, ModelSettings(resolution=64))


def test_a_scheduler_that_shifts_by_the_resolution_does_so_here(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=2.0)
    pipeline.save_pretrained(tmp_path / "shifted")
    pipeline.set_progress_bar_config(disable=True)
    grids = []
    for side in (8, 16):
        pipeline(PROMPTS[0], num_inference_steps=4, height=side, width=side)
        settings = ModelSettings().model_copy(update={"resolution": side})
        grids.append(StableDiffusion3.from_folder(tmp_path / "shifted", settings).sigmas(4))
        assert torch.equal(grids[-1], pipeline.scheduler.sigmas.double())
    assert not torch.equal(*grids)
