"""What SANA alone has: a second-order solver, time in whole thousandths, an instruction before each prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline

from engine.models import guidance_arguments
from engine.models.plain_calls import set_up_plainly, setup_code
from engine.models.sana import Sana
from engine.sampling.rollout import sample_ode
from tests.engine.models.tiny_sana import sana

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PROMPTS = ["a red circle", "the large star on white"]


@pytest.fixture
def pipeline(request: pytest.FixtureRequest) -> SanaPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sana(**getattr(request, "param", {}))


def final_latents(pipeline: SanaPipeline, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the plain call, and of the engine."""
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS, num_inference_steps=num_steps, height=64, width=64, generator=torch.Generator().manual_seed(7),
        output_type="latent", **guidance_arguments("sana", 4.5),
    ).images  # fmt: skip
    model = Sana(pipeline, 64)
    embeddings = model.encode(PROMPTS)
    drawn = sample_ode(
        lambda x, sigma, rows: model.velocity(x, sigma, embeddings, rows, 4.5).detach(),
        model.noise(torch.Generator().manual_seed(7), 2), torch.arange(2), tuple(model.sigmas(num_steps).tolist()), 2,
    )  # fmt: skip
    return expected, drawn


def test_of_second_order_the_plain_call_is_another_and_of_first_order_it_is_the_engines(pipeline: SanaPipeline) -> None:
    published, drawn = final_latents(pipeline, 8)
    assert (published - drawn).abs().max() > 1e-2
    set_up_plainly("sana", pipeline, 4.5)
    expected, drawn = final_latents(pipeline, 8)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


EULER = {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}


@pytest.mark.parametrize("pipeline", [EULER, EULER | {"out_channels": 8}], indirect=True, ids=["plain", "variance"])
def test_under_a_flow_scheduler_the_time_is_exact(pipeline: SanaPipeline) -> None:
    """With a learned variance too, which comes after the velocity's channels."""
    set_up_plainly("sana", pipeline, 4.5)
    assert pipeline.scheduler is EULER["scheduler"], "it draws by Euler's steps already"
    expected, drawn = final_latents(pipeline, 8)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


def test_the_published_grid_is_shifted_and_starts_just_below_one(pipeline: SanaPipeline) -> None:
    """s from 0.999 down in T equal steps to 0, and σ = 3s/(1 + 2s)."""
    times = np.linspace(0.999, 0, 6)
    assert Sana(pipeline, 64).sigmas(5).tolist() == pytest.approx((3 * times / (1 + 2 * times)).tolist(), abs=1e-6)


def test_only_a_prompts_own_words_are_kept_of_what_is_encoded(pipeline: SanaPipeline) -> None:
    """The start, then what follows the instruction; nothing is instructed for the empty prompt."""
    model = Sana(pipeline, 64)
    embeddings = model.encode(PROMPTS)
    assert embeddings.texts["tokens"].shape[1] < 16
    lengths = embeddings.texts["mask"].sum(dim=1)
    assert lengths[1] - lengths[0] == 2
    assert embeddings.empty is not None and embeddings.empty["tokens"].shape == (1, 1, 32)
    alone = pipeline.encode_prompt(PROMPTS, device=torch.device("cpu"))[0]
    assert (alone[:, 1] - embeddings.texts["tokens"][:, 1]).abs().max() > 1e-3, "the instruction is heeded"


def test_a_resolution_that_holds_no_whole_latents_is_refused(pipeline: SanaPipeline) -> None:
    assert Sana(pipeline).noise(torch.Generator(), 1).shape == (1, 4, 32, 32)
    pipeline.vae_scale_factor = 32
    with pytest.raises(ValueError, match=r"model\.resolution is 720, but this model draws multiples of 32 pixels"):
        Sana(pipeline, 720)


def test_a_card_names_the_first_order_where_the_folder_has_another(pipeline: SanaPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "published")
    assert "solver_order=1" in setup_code("sana", tmp_path / "published", 4.5)
    pipeline.scheduler = EULER["scheduler"]
    pipeline.save_pretrained(tmp_path / "euler")
    assert setup_code("sana", tmp_path / "euler", 4.5) == ""
