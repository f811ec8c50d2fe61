"""Nothing in a rollout or an update waits for the device: the whole of it runs where there are no numbers to wait for.

On torch's "meta" device tensors have shapes alone, so whatever asks for a number of theirs fails; and what the host
sends to it is seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.models import MODELS, PromptEmbeddings, TextToImage, load_model
from engine.objective.grpo import GrpoObjective
from engine.objective.nft import NftObjective, noise_images
from engine.sampling.rollout import make_plan, rollout
from engine.sampling.sde import make_kernel
from engine.settings import FlashSettings, GrpoSettings, ModelSettings, NftSettings, SamplingSettings
from engine.transfer import to_device
from tests.engine.models.families import FAMILIES, PROMPTS

META = torch.device("meta")
GROUP_SIZE = 2

# Transformers of diffusers 0.42 that read masks on the host in every forward, whatever they are told.
WAITS = {
    "Lumina 2": "transformer_lumina2.py",
    "HunyuanImage": "transformer_hunyuanimage.py",
    "HunyuanImage distilled": "transformer_hunyuanimage.py",
}

# diffusers' own code: Chroma builds its positions by a name that has moved.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


class Copies(TorchDispatchMode):
    """Notes which of the engine's files send a tensor of the host to the device, or index one there by one here."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        from_host = any(tensor.device.type == "cpu" and tensor.ndim > 0 for tensor in given)
        if from_host and any(tensor.device == META for tensor in (*given, *made)):
            place = _place(sys._getframe(1))
            if place is not None:
                self.places.add(place)
        return result


def _place(frame: FrameType | None) -> str | None:
    """The file of the innermost frame that is not torch's, where it is the engine's."""
    while frame is not None and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename) if frame else Path()
    return path.name if path.is_relative_to(Path(__file__).parents[2] / "engine") else None


def on_meta(model: TextToImage, prompts: list[str]) -> PromptEmbeddings:
    """The transformer and the prompts' embeddings, their numbers gone, but for what the host reads of them once."""
    real = model.encode(prompts)
    model.transformer.requires_grad_(True).to(META)
    texts, empty = (
        None if part is None else {name: tensor.to(META) for name, tensor in part.items()}
        for part in (real.texts, real.empty)
    )
    assert texts is not None
    embeddings = PromptEmbeddings(texts, empty, real.num_padding)
    vars(embeddings)["_lengths"] = real._lengths
    return embeddings


def sample_and_train(model: TextToImage, embeddings: PromptEmbeddings, guidance_scale: float) -> None:
    """Two groups, drawn by a prefix, a window and a tail, and a backward pass of GRPO and of DiffusionNFT."""
    noise = model.noise(torch.Generator().manual_seed(0), len(PROMPTS)).to(META)
    plan = make_plan(SamplingSettings(num_steps=3, shift=3.0), FlashSettings(enabled=True), 1, 1)
    generator, kernel = torch.Generator().manual_seed(1), make_kernel("flow_sde", 0.7)

    def of_prompts(latents: torch.Tensor, sigma: float, rows: torch.Tensor) -> torch.Tensor:
        return model.velocity(latents, sigma, embeddings, rows, guidance_scale)

    def velocity(latents: torch.Tensor, sigma: float, images: torch.Tensor) -> torch.Tensor:
        return of_prompts(latents, sigma, images // GROUP_SIZE)

    drawn = rollout(
        of_prompts, noise, len(PROMPTS), GROUP_SIZE, plan, kernel, generator, shared_prefix=True, micro_batch=4
    )
    num_images = len(drawn.latents)
    advantages, images = torch.ones(num_images, device=META), torch.tensor([0, 3])
    trained = torch.ones(1, num_images, dtype=torch.bool)
    grpo = GrpoObjective(trained, velocity, velocity, kernel, drawn, advantages, GrpoSettings())
    noised = noise_images(drawn.latents, plan.sigmas[1:2], trained, velocity, generator)
    nft = NftObjective(trained, velocity, velocity, noised, advantages, 5.0, NftSettings(base_weight=0.0))
    for objective in (grpo, nft):
        objective.terms(0, images).loss.backward()


@pytest.fixture
def model_of(
    tiny_flux_folders: dict[str, Path], tiny_pipeline_folder: Path
) -> Callable[[str], tuple[TextToImage, float]]:
    """Gives a family's tiny model, and the guidance scale that it trains with."""

    def make(name: str) -> tuple[TextToImage, float]:
        if name == "FLUX":
            return load_model(ModelSettings(name="flux", folder=str(tiny_flux_folders["dev"]))), 3.5
        if name == "built-in":
            return load_model(ModelSettings(folder=str(tiny_pipeline_folder))), 4.0
        family = FAMILIES[name]
        adapter: Any = MODELS[family.name]
        return adapter.__self__(family.make(), family.side), family.scales[-1]

    return make


# One variant of each adapter, and both of those that guide in two ways.
ALIKE = {"SD3", "SD3.5 medium without T5", "SD3.5 large", "Z-Image Turbo"}


@pytest.mark.parametrize("name", ["FLUX", "built-in", *(name for name in FAMILIES if name not in ALIKE)])
def test_nothing_in_a_rollout_or_an_update_waits_for_the_device(
    name: str, model_of: Callable[[str], tuple[TextToImage, float]]
) -> None:
    model, scale = model_of(name)
    embeddings = on_meta(model, PROMPTS)
    with Copies() as copies:
        if name not in WAITS:
            sample_and_train(model, embeddings, scale)
        else:
            with pytest.raises((NotImplementedError, RuntimeError)) as failure:
                sample_and_train(model, embeddings, scale)
            files = [Path(entry.path) for entry in failure.traceback if "/torch/" not in str(entry.path)]
            places = [file.name for file in files if file != Path(__file__)]
            assert places[-1] == WAITS[name], "it waits in diffusers' code, and not in the engine's"
    assert copies.places == {"transfer.py"}


def test_a_copy_that_waits_is_seen() -> None:
    with Copies() as copies:
        to_device(torch.zeros(2), META)
    assert copies.places == {"transfer.py"}
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.zeros(2, device=META).tolist()
