"""A frozen base in fewer bits: near the whole one, equal on both paths, trained beside, and left out of exports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.artifacts.checkpoint import load_checkpoint
from engine.artifacts.export import export_run
from engine.models.int8_linear import Int8Linear
from engine.models.nf4_linear import Nf4Linear
from engine.models.pipelines import open_pipeline
from engine.models.quantisation import Quantisation, quantise
from engine.models.velocity import prompt_velocity
from engine.settings import RunSettings
from engine.train import train
from engine.tuning import make_trainable
from tests.engine.models.families import FAMILIES, PROMPTS, Family, open_model
from tests.engine.training import train_in

# diffusers' own code, as in tests/engine/models/test_families.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

CPU = torch.device("cpu")
KINDS: dict[Quantisation, type[nn.Linear]] = {"int8": Int8Linear, "nf4": Nf4Linear}
# One of each class of transformers.
TRANSFORMERS = (
    "SD3.5 medium", "Chroma", "Lumina 2", "Qwen-Image", "Z-Image", "SANA", "HunyuanImage", "FLUX.2 klein base",
)  # fmt: skip
LORA: dict[str, Any] = {"method": "lora", "rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def saved(name: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / "tiny"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            FAMILIES[name].make().save_pretrained(folder)
        return folder

    return saved


def rounded(kind: Quantisation, layer: nn.Linear) -> nn.Linear:
    block = nn.Module()
    block.stack = nn.ModuleList([nn.Sequential(layer)])
    quantise(block, kind, CPU)
    return block.stack[0][0]


@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_the_weight_to_half_a_level(bias: bool) -> None:
    layer = nn.Linear(40, 24, bias=bias).requires_grad_(False)
    layer.weight[3] = 0
    quantised = rounded("int8", layer)
    whole = quantised(torch.eye(40)).T - (layer.bias[:, None] if bias else 0)
    half_a_level = layer.weight.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert bool(((whole - layer.weight).abs() <= half_a_level * 1.001 + 1e-7).all())
    assert quantised.weight.dtype == torch.int8 and quantised.weight.abs().max() == 127


def test_nf4_is_the_weight_to_half_a_level_of_its_64_numbers() -> None:
    layer = nn.Linear(64, 24).requires_grad_(False)
    quantised = rounded("nf4", layer)
    assert quantised.weight.numel() == 64 * 24 // 2 and quantised.weight.dtype == torch.uint8
    whole = quantised(torch.eye(64)).T - layer.bias[:, None]
    # A row is one block of 64; the widest gap between two of the 16 levels is 0.304 of its largest number.
    assert bool(((whole - layer.weight).abs() <= layer.weight.abs().amax(dim=1, keepdim=True) * 0.304 / 2).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_rounded_weight(kind: Quantisation) -> None:
    layer = rounded(kind, nn.Linear(64, 32))
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.no_grad():
        drawn = layer(x)
    trained = layer(x)
    assert torch.equal(trained, drawn)
    weight = (layer(torch.eye(64)) - layer.bias).T.detach()
    trained.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * trained.detach() @ weight, atol=1e-4, rtol=1e-4)
    assert layer.weight.grad is None and not layer.weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_no_whole_weight_for_the_backward_pass(kind: Quantisation) -> None:
    layer, kept = rounded(kind, nn.Linear(64, 32)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(3, 64, requires_grad=True))
    assert all(count < 64 * 32 for count in kept if count != layer.weight.numel())


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "nf4") for name in TRANSFORMERS), ("SD3.5 medium", "int8"), ("SANA", "int8")]
)
def test_every_family_trains_beside_it(name: str, kind: Quantisation, folder_of: Callable[[str], Path]) -> None:
    """Linear layers of the blocks alone are rounded; rollout and checkpointed training give the same velocity."""
    family = FAMILIES[name]
    model: Any = open_model(family, folder_of(name), precision="bfloat16")
    quantise(model.transformer, kind, CPU)
    settings = RunSettings.model_validate({"tuning": LORA | {"gradient_checkpointing": True}})
    parameters = make_trainable(model, settings.tuning, 0, keep_base=False).parameters
    linear = {path: part for path, part in model.transformer.named_modules() if isinstance(part, nn.Linear)}
    rounded = [part for part in linear.values() if type(part) is KINDS[kind]]
    stacks = {path for path, part in model.transformer.named_children() if isinstance(part, nn.ModuleList)}
    whole = [path for path in linear if "lora" not in path and path.split(".")[0] in stacks]
    assert len(rounded) == len(whole) > 5
    velocity = prompt_velocity(model, model.encode(PROMPTS), family.scales[-1], "bfloat16")
    noise, rows = model.noise(torch.Generator().manual_seed(0), 2), torch.arange(2)
    with torch.no_grad():
        drawn = velocity(noise, 0.5, rows)
    trained = velocity(noise, 0.5, rows)
    assert torch.equal(drawn, trained)
    trained.square().mean().backward()
    # The gradient has come through every rounded layer where it reaches the first block.
    first = next(iter(parameters)).split(".")[:2]
    reached = [part.grad for name, part in parameters.items() if name.split(".")[:2] == first and "lora_B" in name]
    assert any(gradient is not None and bool(gradient.any()) for gradient in reached)


def run_settings(base: RunSettings, family: Family, folder: Path, kind: str, **changes: Any) -> RunSettings:
    own = {
        "iterations": 2,
        "model": family.settings(folder, quantisation=kind).model_dump(),
        "sampling": {"num_steps": 4, "shift": "model", "guidance_scale": family.scales[-1]},
        "grpo": {"prompts_per_iteration": 2, "group_size": 2, "updates_per_iteration": 2},
        "evaluation": {"every": 2, "num_prompts": 1, "num_steps": 3, "guidance_scale": family.scales[-1]},
        "checkpoints": {"every": 1}, "optimiser": {"learning_rate": 3e-2}, "tuning": LORA,
    }  # fmt: skip
    return RunSettings.model_validate(base.model_dump() | own | changes)


@pytest.mark.parametrize(("name", "kind"), [("FLUX.2", "nf4"), ("Z-Image", "int8")])
def test_a_run_is_on_policy_resumes_to_the_bit_and_exports(
    name: str, kind: str, folder_of: Callable[[str], Path], tiny_settings: RunSettings, tmp_path: Path
) -> None:
    settings = run_settings(tiny_settings, FAMILIES[name], folder_of(name), kind)
    run = tmp_path / "run"
    done = train_in(settings, run)
    # The rounded weights are the same in every forward: the bound is that of a whole base.
    assert len(done) == 2 and all(event.ratio_drift <= 1e-5 for event in done)

    checkpoints = [load_checkpoint(run / "checkpoints" / f"step-00000{step}") for step in (1, 2)]
    train(settings, tmp_path / "again", lambda event: None, checkpoint=checkpoints[0])
    again = load_checkpoint(tmp_path / "again" / "checkpoints" / "step-000002")
    for file, tensors in checkpoints[1].tensors.items():
        assert all(torch.equal(again.tensors[file][key], tensor) for key, tensor in tensors.items())

    report = export_run(run, "diffusers", tmp_path / "out")
    assert report.verified and report.max_difference <= 2
    assert f"gallery's tiles, whose base was held in {kind}, " in report.text
    assert f"The base was held in {kind} in training" in (tmp_path / "out" / "README.md").read_text()
    pipeline = open_pipeline(folder_of(name), torch.float32)
    pipeline.load_lora_weights(tmp_path / "out", weight_name="pytorch_lora_weights.safetensors")
    assert pipeline.get_active_adapters()


def test_without_its_package_one_sentence_says_what_to_install(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(FAMILIES["SD3"], folder_of("SD3"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    monkeypatch.delitem(sys.modules, "engine.models.nf4_linear")
    with pytest.raises(ValueError, match=r'^model.quantisation "nf4" needs .*-e "\.\[quantisation\]"`\.$'):
        quantise(model.transformer, "nf4", CPU)
    quantise(model.transformer, "int8", CPU)
