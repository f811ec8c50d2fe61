"""The memory estimate against small models of every family: exactly what is trained, and near what is kept for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.memory_estimate import GIB, MemoryEstimate, activation_bytes, estimate_memory, in_words
from engine.model_size import read_size
from engine.models.velocity import prompt_velocity
from engine.settings import RunSettings
from engine.tuning import make_trainable
from tests.engine.models.families import MEASURED, open_model, other_size

# diffusers' own code, as in tests/engine/models/test_families.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

# The largest there was, LoRA or full, is 2.2 (Z-Image).
FACTOR = 2.5
TUNINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "lora of all layers": {"rank": 4, "layers": "all"},
    "full": {"method": "full"},
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def saved(name: str, other: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("models") / "one"
        pipeline = MEASURED[name].make()
        (other_size(pipeline) if other else pipeline).save_pretrained(folder)
        return folder

    return saved


def settings_of(name: str, folder: Path, **tuning: Any) -> RunSettings:
    family = MEASURED[name]
    return RunSettings.model_validate({
        "model": family.settings(folder).model_dump(), "tuning": tuning,
        "sampling": {"guidance_scale": family.scales[-1]}, "rewards": [{"name": "vividness"}],
    })  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tuning", "other"),
    [(name, tuning, False) for name in MEASURED for tuning in TUNINGS] + [(name, "lora", True) for name in MEASURED],
)
def test_the_estimate_is_what_torch_holds(name: str, tuning: str, other: bool, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(name, other)
    settings = settings_of(name, folder, **TUNINGS[tuning])
    model = open_model(MEASURED[name], folder)
    size = read_size(folder, settings)
    estimate = estimate_memory(size, settings)
    assert estimate.weights == num_bytes(model.transformer.parameters())

    trainable = make_trainable(model, settings.tuning, 0, keep_base=False)
    embeddings = model.encode(["a red circle"])
    tokens = max(tensor.shape[1] for tensor in embeddings.texts.values() if tensor.ndim > 2)
    velocity = prompt_velocity(model, embeddings, settings.sampling.guidance_scale, "float32")
    rows, noise = torch.zeros(1, dtype=torch.long), model.noise(torch.Generator().manual_seed(0), 1)
    kept, output = kept_bytes(lambda: velocity(noise, 0.5, rows), list(model.transformer.parameters()))
    expected = activation_bytes(replace(size, text_tokens=tokens), settings)
    assert expected / FACTOR < kept < expected * FACTOR

    optimiser = torch.optim.AdamW(trainable.parameters.values())
    output.square().mean().backward()
    for parameter in trainable.parameters.values():
        # Some weights of a family take no part: they have no gradient, and AdamW gives them no state.
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    optimiser.step()
    assert estimate.gradients == num_bytes(p.grad for p in trainable.parameters.values() if p.grad is not None)
    moments = [state[key] for state in optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert estimate.optimiser == num_bytes(moments)
    assert estimate.adapter == (num_bytes(trainable.parameters.values()) if "lora" in tuning else 0)


@pytest.mark.parametrize("name", ["SD3", "Qwen-Image", "FLUX.2"])
def test_what_checkpointing_keeps(name: str, folder_of: Callable[[str], Path]) -> None:
    """At least the blocks' inputs, which is what the forward pass keeps then; and less than without."""
    settings = settings_of(name, folder_of(name), method="full", gradient_checkpointing=True)
    model = open_model(MEASURED[name], folder_of(name))
    make_trainable(model, settings.tuning, 0, keep_base=False)
    embeddings = model.encode(["a red circle"])
    tokens = max(tensor.shape[1] for tensor in embeddings.texts.values() if tensor.ndim > 2)
    size = replace(read_size(folder_of(name), settings), text_tokens=tokens)
    velocity = prompt_velocity(model, embeddings, settings.sampling.guidance_scale, "float32")
    noise = model.noise(torch.Generator().manual_seed(0), 1)
    kept, _ = kept_bytes(
        lambda: velocity(noise, 0.5, torch.zeros(1, dtype=torch.long)), list(model.transformer.parameters())
    )
    without = settings_of(name, folder_of(name), method="full")
    assert kept < activation_bytes(size, settings) < activation_bytes(size, without)


def test_encoders_and_autoencoder_are_counted(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("SD3")
    pipeline = MEASURED["SD3"].make()
    estimate = estimate_memory(read_size(folder, settings_of("SD3", folder)), settings_of("SD3", folder))
    encoders = [getattr(pipeline, f"text_encoder{end}") for end in ("", "_2", "_3")]
    assert estimate.autoencoder == num_bytes(pipeline.vae.parameters())
    assert estimate.encoders == sum(num_bytes(encoder.parameters()) for encoder in encoders)
    assert estimate.start == estimate.weights + estimate.encoders + estimate.autoencoder


def test_words_say_what_to_change() -> None:
    sizes = {"weights": 24, "adapter": 1, "gradients": 1, "optimiser": 2, "copies": 0, "activations": 12}
    rest = {"encoders": 9, "autoencoder": 1, "start": 34, "training": 41}
    estimate = MemoryEstimate(**{name: count * GIB for name, count in (sizes | rest).items()})
    half = {"name": "flux", "precision": "bfloat16"}

    def said(gib: int, model: dict[str, Any], **tuning: Any) -> str:
        settings = RunSettings.model_validate({"model": model, "tuning": tuning, "rewards": [{"name": "vividness"}]})
        return in_words(estimate, settings, gib * GIB)

    assert said(80, half).startswith("About 41.0 GiB of GPU memory with one image at a time: 34.0 GiB while")
    assert "hardly" not in said(49, half)
    assert "hardly fit this GPU's 48.0 GiB: set tuning.gradient_checkpointing to true." in said(48, half)
    assert "set model.precision to bfloat16." in said(24, {"name": "flux"})
    assert "set tuning.method to lora" in said(24, half, method="full", gradient_checkpointing=True)
    assert "lower model.resolution" in said(24, half, gradient_checkpointing=True)


def num_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kept_bytes(work: Callable[[], Tensor], weights: list[torch.nn.Parameter]) -> tuple[int, Tensor]:
    """Bytes that are saved for the backward pass of some work, weights aside, each storage once; and its output."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = work()
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own), output
