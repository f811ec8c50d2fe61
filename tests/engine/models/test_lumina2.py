"""What Lumina-Image 2.0 alone has: time that runs backwards, a guided prediction of a given norm, a system prompt."""

from __future__ import annotations

import pytest
import torch

from engine.models.lumina2 import Lumina2
from tests.engine.models.tiny_lumina2 import lumina2

ROW = torch.zeros(1, dtype=torch.long)


def test_time_and_velocity_run_the_other_way() -> None:
    model = Lumina2(lumina2(), 64)
    embeddings, noise = model.encode(["a red circle"]), model.noise(torch.Generator().manual_seed(0), 1)
    predicted = model.transformer(
        noise, torch.tensor([0.25]), embeddings.texts["tokens"], embeddings.texts["mask"], return_dict=False
    )[0]
    assert torch.equal(model.velocity(noise, 0.75, embeddings, ROW, 1.0), -predicted)


def test_guidance_keeps_the_norm_of_each_row() -> None:
    model = Lumina2(lumina2(), 64)
    embeddings, noise = model.encode(["a red circle"]), model.noise(torch.Generator().manual_seed(0), 1)
    plain, guided = (model.velocity(noise, 0.75, embeddings, ROW, scale).detach() for scale in (1.0, 4.0))
    torch.testing.assert_close(guided.norm(dim=-1), plain.norm(dim=-1))
    assert (guided - plain).abs().max() > 1e-3


def test_text_is_as_long_as_the_longest_prompt_after_the_system_prompt() -> None:
    pipeline = lumina2()
    embeddings = Lumina2(pipeline, 64).encode(["a red circle", "the large star on white"])
    before = len(f"{pipeline.system_prompt} <Prompt Start>".split())
    assert embeddings.empty is not None
    assert embeddings.texts["mask"].sum(dim=1).tolist() == [1 + before + 3, 1 + before + 5]
    assert embeddings.texts["tokens"].shape == (2, 1 + before + 5, 32)
    assert embeddings.empty["tokens"].shape == (1, 1, 32), "nothing but the start: no system prompt before it"


@pytest.mark.parametrize("scheduler", [{"shift": 6.0}, {"shift": 1.0, "use_dynamic_shifting": True}])
def test_the_grid_is_the_plain_calls(scheduler: dict[str, object]) -> None:
    """That call takes the number of channels for the number of tokens; only a shift by the resolution can tell."""
    pipeline = lumina2(**scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a red circle", num_inference_steps=4, height=64, width=64, output_type="latent", guidance_scale=1.0)
    expected = pipeline.scheduler.sigmas.double()
    assert torch.equal(Lumina2(pipeline, 64).sigmas(4), expected)


def test_without_a_resolution_it_is_the_transformers() -> None:
    assert Lumina2(lumina2()).noise(torch.Generator(), 1).shape == (1, 4, 16, 16)
