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

from engine.memory_estimate import MemoryEstimate, activation_bytes, decoding_bytes, estimate_memory, moments_bytes
from engine.model_size import read_size
from engine.models import load_model
from engine.models.int8_linear import Int8Linear
from engine.models.nf4_linear import Nf4Linear
from engine.models.quantisation import quantise
from engine.models.velocity import prompt_velocity
from engine.optimiser import make_optimiser
from engine.settings import OptimiserSettings, RunSettings
from engine.tuning import make_trainable
from tests.engine.limited_memory import LimitedMemory
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


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", MEASURED)
def test_a_base_in_fewer_bits_is_counted_to_the_byte(name: str, kind: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(name)
    settings = settings_of(name, folder, rank=4)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"quantisation": kind})})
    model = open_model(MEASURED[name], folder)
    quantise(model.transformer, kind, torch.device("cpu"))
    held = list(model.transformer.parameters())
    for layer in model.transformer.modules():
        if isinstance(layer, Int8Linear):
            held.append(layer.scale)
        elif isinstance(layer, Nf4Linear):
            held += [layer.quant_state.absmax, layer.quant_state.code]
    estimate = estimate_memory(read_size(folder, settings), settings)
    assert estimate.weights == num_bytes(held)
    assert estimate.start == estimate.weights + estimate.encoders + estimate.autoencoder


def test_moments_in_8_bits_are_counted_to_the_byte() -> None:
    counts = [64 * 64, 4095, 70 * 100]
    weights = [torch.nn.Parameter(torch.ones(count)) for count in counts]
    optimiser = make_optimiser(weights, OptimiserSettings(name="adamw_8bit"))
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    entries = ("state1", "state2", "absmax1", "absmax2")
    held = [state[entry] for state in optimiser.state.values() for entry in entries if entry in state]
    assert moments_bytes(counts, "adamw_8bit") == num_bytes(held)
    assert moments_bytes(counts, "adamw") == 8 * sum(counts)


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("name", MEASURED)
def test_what_decoding_holds(name: str, tile: int | None, folder_of: Callable[[str], Path]) -> None:
    """Within the factor of what is held at once, of a whole image or of tiles."""
    folder, family = folder_of(name), MEASURED[name]
    settings = settings_of(name, folder)
    changes = {} if tile is None else {"vae_tile": family.side // tile}
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=changes)})
    model = load_model(settings.model)
    noise, memory = model.noise(torch.Generator().manual_seed(0), 1), LimitedMemory(1e12)
    with torch.no_grad(), memory:
        held = memory.peak(lambda: model.decode(noise))
    expected = decoding_bytes(read_size(folder, settings), settings)
    assert expected / FACTOR < held < expected * FACTOR


def test_parts_that_rest_are_not_counted_where_they_do_not_work(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("SD3")

    def of(**compute: bool) -> MemoryEstimate:
        data = settings_of("SD3", folder).model_dump() | {"compute": compute}
        settings = RunSettings.model_validate(data)
        return estimate_memory(read_size(folder, settings), settings)

    whole, rests = of(), of(offload=True)
    assert rests.training == whole.training - whole.autoencoder
    assert rests.decoding == whole.decoding, "there it works"
    assert rests.start == max(whole.weights, whole.encoders)
    stay = of(embedding_cache=False)
    assert stay.training == whole.training + whole.encoders
    assert of(offload=True, embedding_cache=False).training == rests.training


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
