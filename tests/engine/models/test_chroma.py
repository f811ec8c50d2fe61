"""What Chroma alone has: a mask that reaches every block, and grids bent by a beta distribution."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from engine.models import load_model
from engine.models.chroma import Chroma
from engine.settings import ModelSettings
from tests.engine.models.tiny_chroma import chroma

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def velocity(model: Chroma, changes: dict[str, Tensor]) -> Tensor:
    embeddings = model.encode(["a red circle"])
    changed = type(embeddings)({**embeddings.texts, **changes}, embeddings.empty)
    noise = model.noise(torch.Generator().manual_seed(0), 1)
    return model.velocity(noise, 0.7, changed, torch.zeros(1, dtype=torch.long), 1.0)


def test_text_is_always_512_tokens_of_which_the_prompt_and_one_more_are_kept() -> None:
    embeddings = Chroma(chroma(), 32).encode(["a red circle", "the large star on white"])
    assert embeddings.empty is not None
    assert embeddings.texts["tokens"].shape == (2, 512, 32)
    assert embeddings.texts["mask"].sum(dim=1).tolist() == [3 + 1 + 1, 5 + 1 + 1], "words, the end, one of padding"
    assert embeddings.empty["mask"].sum(dim=1).tolist() == [1 + 1]


def test_the_mask_reaches_every_block_checkpointed_or_not() -> None:
    """diffusers forgets it in checkpointed single blocks, so these have no other here."""
    pipeline = chroma()
    pipeline.transformer.transformer_blocks = torch.nn.ModuleList()
    model = Chroma(pipeline, 32)
    half = torch.arange(512)[None] < 256
    seen, unmasked = velocity(model, {"mask": half}), velocity(model, {"mask": torch.ones_like(half)})
    assert (seen - unmasked).abs().max() > 1e-4
    model.transformer.train().requires_grad_(True).enable_gradient_checkpointing()
    assert torch.equal(velocity(model, {"mask": half}), seen)
    assert (velocity(model, {"mask": half}).sum().backward(), model.transformer.x_embedder.weight.grad is not None)[1]


@pytest.mark.parametrize(("side", "mu"), [(64, 0.5), (256, 1.15)])
def test_the_grid_is_shifted_by_the_resolution_where_the_scheduler_says_so(side: int, mu: float) -> None:
    times = [1 - i / 5 for i in range(5)]
    expected = [math.exp(mu) / (math.exp(mu) + 1 / time - 1) for time in times] + [0.0]
    model = Chroma(chroma(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15), side)
    assert model.sigmas(5).tolist() == pytest.approx(expected, abs=1e-6)
    assert Chroma(chroma(), side).sigmas(5).tolist() == pytest.approx([*times, 0.0])


def test_without_a_resolution_it_is_the_pipelines() -> None:
    assert Chroma(chroma()).noise(torch.Generator(), 1).shape == (1, 4, 128, 128)


def test_a_beta_grid_without_scipy_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = chroma()
    pipeline.scheduler.register_to_config(use_beta_sigmas=True)
    pipeline.save_pretrained(tmp_path)
    monkeypatch.setattr("engine.model_checks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs scipy; install it with .* -e ".\[beta\]"'):
        load_model(ModelSettings(name="chroma", folder=str(tmp_path)))


def test_a_beta_grid_is_the_plain_calls() -> None:
    model = Chroma(chroma(use_beta_sigmas=True), 32)
    share = stats.beta.ppf([1.0, 0.75, 0.5, 0.25, 0.0], 0.6, 0.6)
    assert model.sigmas(5).tolist() == pytest.approx([*(0.2 + 0.8 * share), 0.0], abs=1e-6)
