"""The estimate of time: counted work by a formula's operations at a speed, added up by hand; and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import time_estimate
from engine.builtin import WEIGHTS
from engine.catalogue.gpus import GPUS, find_gpu
from engine.flops import count_flops
from engine.model_size import ModelSize, read_size
from engine.presets import PRESETS
from engine.settings import RunSettings
from engine.time_estimate import Speed, TimeEstimate, cpu_speed, estimate_time, gpu_speed, in_words, milliseconds
from engine.work import mean_work

SPEED = Speed(1e9, "by a test", decoding=0.5)
# Ten steps of which two are trained; 2 prompts of 3 images; evaluations at 0, 4, 8 and 10.
BASE: dict[str, Any] = {
    "iterations": 10, "rewards": [{"name": "composition"}], "sampling": {"num_steps": 10},
    "window": {"size": 2, "strategy": "frozen"},
    "grpo": {"prompts_per_iteration": 2, "group_size": 3, "updates_per_iteration": 1},
    "evaluation": {"every": 4, "num_prompts": 5, "num_steps": 7},
}  # fmt: skip


def settings_of(**changes: Any) -> RunSettings:
    return RunSettings.model_validate(BASE | changes)


@pytest.fixture(scope="module")
def size() -> ModelSize:
    return read_size(WEIGHTS, RunSettings())


def test_it_is_work_times_operations_at_a_speed(size: ModelSize) -> None:
    settings = settings_of()
    flops, estimate = count_flops(size, settings), estimate_time(size, settings, SPEED)
    assert estimate.drawing == pytest.approx(6 * 10 * flops.forward / 1e9 + 6 * 0.5)
    assert estimate.training == pytest.approx(6 * 2 * flops.training / 1e9)
    assert estimate.scoring == pytest.approx(6 * milliseconds("composition", False) / 1000)
    each = 7 * flops.forward / 1e9 + 0.5 + milliseconds("composition", False) / 1000
    assert estimate.evaluations == pytest.approx(4 * 5 * each)
    assert estimate.run == pytest.approx(10 * estimate.iteration + estimate.evaluations)


@pytest.mark.parametrize(
    ("changes", "drawing", "training"),
    [
        ({"sampling": {"num_steps": 10, "guidance_scale": 3.0}}, 2.0, 2.0),
        ({"compute": {"num_processes": 2}}, 0.5, 0.5),
    ],
)
def test_what_guidance_and_processes_change(
    size: ModelSize, changes: dict[str, Any], drawing: float, training: float
) -> None:
    speed = Speed(1e9, "by a test")
    one, other = (estimate_time(size, settings_of(**more), speed) for more in ({}, changes))
    assert other.drawing == pytest.approx(drawing * one.drawing)
    assert other.training == pytest.approx(training * one.training)


def test_a_model_that_takes_its_guidance_as_an_input_takes_one_forward(size: ModelSize) -> None:
    guided = settings_of(sampling={"num_steps": 10, "guidance_scale": 3.0})
    taking = ModelSize(**(vars(size) | {"takes_guidance": True}))
    assert estimate_time(taking, guided, SPEED) == estimate_time(size, settings_of(), SPEED)


def test_checkpointing_repeats_the_blocks_and_a_base_is_asked_too(size: ModelSize) -> None:
    settings = settings_of(tuning={"gradient_checkpointing": True}, grpo=BASE["grpo"] | {"kl_weight": 0.1})
    flops, trained = count_flops(size, settings), mean_work(settings).trained_steps
    expected = trained * (flops.training + flops.blocks + flops.forward) / 1e9
    assert estimate_time(size, settings, SPEED).training == pytest.approx(expected)
    assert 0.95 * flops.forward < flops.blocks < flops.forward


def test_the_built_in_models_estimate_is_within_a_factor_of_two_of_what_was_measured(
    size: ModelSize, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the committed times of a quiet core, at what a product reached there: 107 GFLOP/s."""
    monkeypatch.setattr(time_estimate, "_flops_of_a_product", lambda: 107e9)
    monkeypatch.setattr(time_estimate, "_computes_in_bfloat16", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    measured = json.loads((project_root / "benchmarks/results/time_shares.json").read_text())["shares"]
    assert len(measured) > 4
    for name, shares in measured.items():
        data = PRESETS[name].make().model_dump() | {"rewards": [{"name": "vividness"}, {"name": "composition"}]}
        settings = RunSettings.model_validate(data | {"model": {"precision": "bfloat16"}})
        estimate = estimate_time(size, settings, cpu_speed(settings))
        assert 0.5 < estimate.iteration / shares["seconds_an_iteration"] < 2, name


def test_the_speed_of_this_cpu_is_of_the_cores_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    whole, two, shared = (
        cpu_speed(settings_of(compute=compute)).flops for compute in ({}, {"num_threads": 2}, {"num_processes": 2})
    )
    assert whole > 1e8
    assert (two, shared) == (pytest.approx(whole / 4), pytest.approx(whole / 2))


def test_a_gpu_is_known_by_its_name() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA H200": "H200", "NVIDIA L40S": "L40S",
        "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA GeForce RTX 4090": "RTX 4090", "NVIDIA L4": "L4",
        "NVIDIA H200 NVL": "H200 NVL", "NVIDIA GB200": "GB200", "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    }  # fmt: skip
    assert {device: getattr(find_gpu(device), "name", None) for device in names} == names
    assert find_gpu("CPU") is None
    # None stands behind one that its name holds, where it could not be found.
    assert all(find_gpu(gpu.name) is gpu for gpu in GPUS)


def test_words(size: ModelSize) -> None:
    gpu = find_gpu("H100")
    assert gpu is not None
    half = gpu_speed(gpu, settings_of(model={"precision": "bfloat16"}))
    assert (half.flops, half.on_gpu) == (pytest.approx(336.396e12), True)
    estimate = TimeEstimate(drawing=61.0, training=8.26, scoring=0.0, evaluations=600.0, iterations=100)
    assert in_words(estimate, half) == (
        "About 1 min an iteration (1 min drawing, 8.3 s training, 0.0 s scoring) and 2 h 5 min in all, on an NVIDIA "
        "H100, if it reaches 34 % of its 989.4 TFLOP/s in bfloat16; decoding the images comes on top."
    )
    assert in_words(estimate, SPEED).endswith("in all, by a test.")
    assert gpu_speed(gpu, settings_of()).flops < half.flops / 10
