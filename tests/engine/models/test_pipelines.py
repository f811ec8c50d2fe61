"""Pipeline folders that diffusers opens, but that do not draw by Euler's steps, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxPipeline,
)
from safetensors.torch import load_file, save_file

from engine.models import load_model
from engine.models.flux import Flux
from engine.models.pipelines import grid_of
from engine.settings import ModelSettings
from tests.engine.models.tiny_pipelines import flux2_klein
from tests.engine.models.tiny_sana import sana


@pytest.fixture
def folder(tiny_flux_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A FLUX.1 folder of the test's own."""
    return Path(shutil.copytree(tiny_flux_folders["schnell"], tmp_path / "flux"))


def with_scheduler(folder: Path, scheduler: Any) -> None:
    """Change the scheduler of a pipeline folder."""
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"][1] = type(scheduler).__name__
    (folder / "model_index.json").write_text(json.dumps(index))
    scheduler.save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (FlowMatchHeunDiscreteScheduler(), "is a FlowMatchHeunDiscreteScheduler, set to something else"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "is a DPMSolver"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "has invert_sigmas, which leads no plain way"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "has stochastic_sampling, which leads"),
    ],
)
def test_a_scheduler_of_other_steps(folder: Path, scheduler: Any, says: str) -> None:
    with_scheduler(folder, scheduler)
    with pytest.raises(ValueError, match=says):
        load_model(ModelSettings(name="flux", folder=str(folder)))


def test_sanas_solver_must_be_set_to_flow_matching(tmp_path: Path) -> None:
    sana(scheduler=DPMSolverMultistepScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a DPMSolverMultistepScheduler, set to something else than flow matching"):
        load_model(ModelSettings(name="sana", folder=str(tmp_path)))


def test_a_grid_that_does_not_fall_to_0_is_refused() -> None:
    """diffusers stretches a grid of one step by 0/0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=0.02)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert grid_of(scheduler).tolist() == pytest.approx([1.0, 0.02, 0.0])
    with np.errstate(invalid="ignore"):
        scheduler.set_timesteps(sigmas=[1.0])
    with pytest.raises(ValueError, match=r"not go from noise to image in 1 steps.*ask for more steps"):
        grid_of(scheduler)


def test_weights_that_lack_a_layer_of_their_configuration(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_single_layers": 3}))
    with pytest.raises(ValueError, match=r"does not fit its own config\.json: its weights lack \d+ tensors"):
        load_model(ModelSettings(name="flux", folder=str(folder)))


@pytest.mark.parametrize(
    ("part", "changes", "lacks"),
    [("text_encoder", {"num_hidden_layers": 3}, "layers.2."), ("text_encoder_2", {"num_layers": 2}, "block.1.")],
)
def test_an_encoder_that_would_be_filled_at_random(
    folder: Path, part: str, changes: dict[str, int], lacks: str
) -> None:
    path = folder / part / "config.json"
    config = json.loads(path.read_text())
    assert all(config[name] < layers for name, layers in changes.items())
    path.write_text(json.dumps(config | changes))
    says = rf"{part} does not fit its own config\.json: its weights lack \d+ tensors, such as \S*{lacks}"
    with pytest.raises(ValueError, match=says):
        load_model(ModelSettings(name="flux", folder=str(folder)))


def test_an_encoder_without_its_language_head_is_whole(tmp_path: Path) -> None:
    """Only its states are asked for."""
    flux2_klein().save_pretrained(tmp_path)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "lm_head" not in name}, weights, {"format": "pt"})
    assert load_model(ModelSettings(name="flux2_klein", folder=str(tmp_path)))


def test_a_resolution_that_holds_no_whole_tokens_is_refused(folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.vae_scale_factor = 16
    assert Flux(pipeline, 64).noise(torch.Generator(), 1).shape == (1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"model\.resolution is 48, but this model draws multiples of 32 pixels"):
        Flux(pipeline, 48)
