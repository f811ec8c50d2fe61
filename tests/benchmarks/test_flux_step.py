"""FLUX.1's operations against torch's own count, and the benchmark in miniature from command line to results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.flops import Flops, count_flops
from engine.settings import RunSettings

PEAK = 0.05


@pytest.fixture
def flux_step(benchmarks: None) -> ModuleType:
    return importlib.import_module("flux_step")


def test_operations_at_the_true_width_are_what_torch_counts(flux_step: ModuleType) -> None:
    """Full fine-tuning of fewer blocks, by a counter that needs no memory for them; nothing is computed."""
    config, num_image, num_text = flux_step.SIZES["flux"].config | {"num_layers": 2, "num_single_layers": 3}, 2025, 512
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**config)
        inputs = {
            "hidden_states": torch.zeros(1, num_image, config["in_channels"]),
            "encoder_hidden_states": torch.zeros(1, num_text, config["joint_attention_dim"]),
            "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
            "timestep": torch.zeros(1), "guidance": torch.zeros(1),
            "img_ids": torch.zeros(num_image, 3), "txt_ids": torch.zeros(num_text, 3),
        }  # fmt: skip
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = transformer(**inputs, return_dict=False)[0]
        forward = counter.get_total_flops()
        output.sum().backward()
    settings = RunSettings.model_validate({
        "model": {"name": "flux", "resolution": 720}, "tuning": {"method": "full"}, "rewards": [{"name": "vividness"}],
    })  # fmt: skip
    flops = count_flops(flux_step.model_size(transformer, num_text), settings)
    assert (flops.forward, flops.training) == (forward, counter.get_total_flops())


def test_the_large_size_is_flux(flux_step: ModuleType) -> None:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**flux_step.SIZES["flux"].config)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 11_901_408_320


def test_in_miniature(flux_step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        "sampling": {"num_steps": 8}, "grpo": {"group_size": 6, "updates_per_iteration": 1},
        "compute": {"num_threads": 1},
    }  # fmt: skip
    flux_step.main([
        "--size", "tiny", "--presets", "mixgrpo", "turbo", "diffusion_nft", "--positions", "2", "--device", "cpu",
        "--peak-tflops", str(PEAK), "--changes", json.dumps(changes), "--results", str(tmp_path),
    ])  # fmt: skip
    (path,) = tmp_path.glob("flux_step_tiny-*.json")
    report = json.loads(path.read_text())
    assert {"torch", "diffusers"} <= report["versions"].keys()
    assert [case["recipe"] for case in report["cases"]] == ["mixgrpo", "turbo", "diffusion_nft"]
    for case in report["cases"]:
        assert case["seconds"]["iteration"] == pytest.approx(case["seconds"]["rollout"] + case["seconds"]["training"])
        assert min(case["seconds"].values()) > 0
        for phase, share in case["utilisation"].items():
            assert share == pytest.approx(case["tflops"][phase] / PEAK, abs=1e-4)
        assert case["peak_memory_gib"] is None
    mixgrpo, turbo, nft = report["cases"]
    # T = 8 and W = 4: positions 0 to 2, of which two are measured; the prefix once, 6 images for the rest.
    assert [row["window_start"] for row in mixgrpo["iterations"]] == [0, 2]
    assert [row["num_forwards"] for row in mixgrpo["iterations"]] == [6 * 8, 2 + 6 * 6]
    assert {row["num_trained_steps"] for row in mixgrpo["iterations"]} == {24}
    assert {row["num_trained_steps"] for row in turbo["iterations"]} == {12}
    assert {row["num_references"] for row in nft["iterations"]} == {2 * 24}
    printed = capsys.readouterr().out
    assert all(f"{name} at 64: ready" in printed for name in ("mixgrpo", "turbo"))
    assert f"Written to {path}." in printed


def test_memory_that_runs_out_is_told_and_the_rest_is_measured(
    flux_step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_case(name: str, resolution: int, arguments: Any) -> dict[str, Any]:
        if resolution == 1024:
            raise torch.OutOfMemoryError
        row = flux_step.Iteration(0, 2.0, 4.0, 10, 0, 5, 2**30, 3 * 2**30)
        return flux_step.summarise([row], Flops(forward=30 * 10**12, training=60 * 10**12, blocks=0), 989.4)

    monkeypatch.setattr(flux_step, "measure_case", measure_case)
    flux_step.main(["--presets", "mixgrpo", "--peak-tflops", "989.4", "--results", str(tmp_path)])
    (path,) = tmp_path.glob("flux_step-*.json")
    large, small = json.loads(path.read_text())["cases"]
    assert large["error"] == "out of memory"
    assert small["peak_memory_gib"] == 3
    assert small["utilisation"]["rollout"] == pytest.approx(10 * small["forward_tflop"] / 2 / 989.4, abs=1e-4)
    assert small["utilisation"]["training"] == pytest.approx(5 * small["training_tflop"] / 4 / 989.4, abs=1e-4)
    assert "1024   out of memory" in capsys.readouterr().out


def test_full_fine_tuning_is_not_measured(flux_step: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measures LoRA"):
        flux_step.main(["--size", "tiny", "--changes", '{"tuning": {"method": "full"}}', "--results", str(tmp_path)])


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA H200", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA A100-SXM4-80GB", 312.0), ("Some processor", None)],
)
def test_the_peak_goes_by_the_devices_name(
    flux_step: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str, peak: float | None
) -> None:
    monkeypatch.setattr(flux_step, "device_name", lambda: device)
    assert flux_step.parse([]).peak_tflops == peak
