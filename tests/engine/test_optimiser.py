"""AdamW in 32 and in 8 bits, and its way through a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.artifacts.checkpoint import load_checkpoint
from engine.optimiser import make_optimiser, optimiser_tensors, restore_optimiser
from engine.settings import OptimiserSettings, RunSettings
from engine.train import train

NAMES = ("adamw", "adamw_8bit")


def weights() -> dict[str, nn.Parameter]:
    """One of those whose moments have 8 bits, and one that is too small for it."""
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(size, 64, generator=generator)) for name, size in (("a", 64), ("b", 3))}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(parameter.shape, generator=generator) for name, parameter in weights().items()}


def take(optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        for name, gradient in gradients(step).items():
            parameters[name].grad = gradient
        optimiser.step()


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_to_the_bit(name: str) -> None:
    options = OptimiserSettings.model_validate({"name": name, "learning_rate": 1e-2})
    whole, first, second = weights(), weights(), weights()
    take(make_optimiser(whole.values(), options), whole, range(6))
    begun = make_optimiser(first.values(), options)
    take(begun, first, range(3))
    with torch.no_grad():
        for parameter, kept in zip(second.values(), first.values(), strict=True):
            parameter.copy_(kept)
    resumed = make_optimiser(second.values(), options)
    restore_optimiser(resumed, second, optimiser_tensors(begun, first))
    take(resumed, second, range(3, 6))
    assert all(torch.equal(second[key], parameter) for key, parameter in whole.items())
    moments = {str(tensor.dtype) for key, tensor in optimiser_tensors(resumed, second).items() if key == "a/state1"}
    assert moments == ({"torch.uint8"} if name == "adamw_8bit" else set())


@torch.no_grad()
def test_8_bits_step_nearly_as_32_do() -> None:
    """8 bits round a moment by a few per cent; what is too small for them goes the same way."""
    ends = {}
    for name in NAMES:
        ends[name] = weights()
        options = OptimiserSettings.model_validate({"name": name, "learning_rate": 1e-2})
        take(make_optimiser(ends[name].values(), options), ends[name], range(8))
    for key, start in weights().items():
        way, difference = ends["adamw"][key] - start, ends["adamw_8bit"][key] - ends["adamw"][key]
        share = float(difference.norm() / way.norm())
        assert share < (0.1 if key == "a" else 1e-5)


def test_a_run_in_8_bits_resumes_to_the_bit(tiny_settings: RunSettings, tmp_path: Path) -> None:
    changes = {"tuning": {"method": "full"}, "optimiser": {"name": "adamw_8bit", "learning_rate": 1e-4}}
    settings = RunSettings.model_validate(tiny_settings.model_dump() | changes)
    train(settings, tmp_path / "whole", lambda event: None)
    checkpoint = load_checkpoint(tmp_path / "whole" / "checkpoints" / "step-000002")
    kinds = {tensor.dtype for tensor in checkpoint.tensors["optimiser.safetensors"].values()}
    assert torch.uint8 in kinds
    train(settings, tmp_path / "again", lambda event: None, checkpoint=checkpoint)
    ends = [load_checkpoint(tmp_path / run / "checkpoints" / "step-000004").tensors for run in ("whole", "again")]
    for file, tensors in ends[0].items():
        assert all(torch.equal(ends[1][file][key], tensor) for key, tensor in tensors.items())


def test_without_its_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match=r'^optimiser.name "adamw_8bit" needs .*-e "\.\[quantisation\]"`\.$'):
        make_optimiser(weights().values(), OptimiserSettings(name="adamw_8bit"))
