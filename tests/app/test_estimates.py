"""What a form says of a run's work, memory and time before it is launched."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app import estimates
from app.estimates import all_of, less_memory, memory, times, work
from app.forms import with_values
from engine.builtin import WEIGHTS
from engine.model_size import read_size
from engine.settings import RunSettings
from engine.settings_text import parse_settings
from engine.tensor_headers import TensorShape
from engine.time_estimate import TOO_SMALL, Speed

H100 = "cuda:0 (NVIDIA H100 80GB HBM3)"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    """Settings of a model of 8 billion weights, in bfloat16, by a size that no file is behind."""
    size = read_size(WEIGHTS, RunSettings())
    block = {"transformer_blocks.0.attn.to_q.weight": TensorShape("BF16", (80_000, 100_000))}
    monkeypatch.setattr(estimates, "size_of", lambda settings, folder: replace(size, transformer=block))
    model = {"name": "sd3", "folder": "elsewhere", "precision": "bfloat16"}
    return RunSettings.model_validate({"model": model, "rewards": [{"name": "vividness"}]})


def test_memory_is_told_of_the_built_in_model_alone() -> None:
    """No folder is read because a form's text names it."""
    lora, full = RunSettings(), parse_settings(with_values(RunSettings(), {"tuning.method": "full"}))
    assert re.match(r"About \d+ MiB of GPU memory", memory(lora))
    assert memory(full) != memory(lora)
    for model in ({"folder": "/nowhere"}, {"hub_id": "owner/name"}, {"name": "flux"}):
        assert memory(RunSettings.model_validate({"model": model})) == ""


def test_work_counts_images() -> None:
    settings = parse_settings(with_values(RunSettings(), {"iterations": 20, "evaluation.every": 10}))
    text = work(settings)
    assert "48 images an iteration (4 prompts × 12), 960 in all" in text
    # MixGRPO's mean over its positions: 4 prompts × (9.5 shared + 15.5 × 12) forwards, 4 steps of 48 images.
    assert "782 transformer forwards and 192 trained steps an iteration" in text
    # Steps 0, 10 and 20, of 16 prompts each.
    assert "48 held-out images over 3 samplings" in text


@pytest.mark.parametrize(("device", "seconds"), [("cpu", "13.6"), ("cuda", "0.1")])
def test_it_knows_that_models_score_faster_on_a_gpu(device: str, seconds: str) -> None:
    settings = parse_settings({
        "rewards": [{"name": "hpsv2", "weights": "hps"}], "compute": {"device": device},
        "grpo": {"prompts_per_iteration": 1, "group_size": 4},
    })  # fmt: skip
    assert f"scoring about {seconds} s an iteration" in work(settings)


@pytest.mark.parametrize(
    ("compute", "devices"), [({}, []), ({}, ["cpu", "cpu"]), ({"device": "cpu"}, [H100])],
)  # fmt: skip
def test_the_built_in_model_is_timed_on_this_cpu(compute: dict[str, Any], devices: list[str]) -> None:
    (told,) = times(RunSettings.model_validate({"compute": compute}), devices=devices)
    assert re.match(r"About .* an iteration \(.* drawing, .* training, .* scoring\) and .* in all, on this m", told)


@pytest.mark.parametrize("devices", [[H100], ["cuda"]])
def test_a_gpus_data_sheet_says_nothing_of_a_model_so_small(devices: list[str]) -> None:
    assert times(RunSettings(), devices=devices) == [TOO_SMALL]


def test_what_was_measured_goes_before_all_else(large: RunSettings) -> None:
    (told,) = times(large, devices=[H100], measured=Speed(1e12, "as it was", decoding=1.0))
    assert told.endswith(" in all, as it was.")


def test_a_large_model_is_timed_on_the_gpus_there_are_or_on_common_ones(large: RunSettings) -> None:
    (told,) = times(large, devices=["cpu", H100, H100, "cuda:1 (NVIDIA H100 80GB HBM3)"])
    assert "on an NVIDIA H100, if it reaches 34 % of its 989.4 TFLOP/s in bfloat16" in told
    for devices in ([], ["cpu"], ["cuda"]):
        first, second = times(large, devices=devices)
        assert "on an NVIDIA H100" in first and "on an NVIDIA RTX 4090" in second
    in_full = parse_settings(with_values(large, {"tuning.method": "full", "tuning.gradient_checkpointing": True}))
    assert [told.split(",")[0] for told in times(in_full)] == [
        "An NVIDIA H100 has 80 GiB of memory", "An NVIDIA RTX 4090 has 24 GiB of memory"
    ]


def test_memory_is_compared_with_a_gpu_that_is_known(large: RunSettings) -> None:
    full = parse_settings(with_values(large, {"tuning.method": "full"}))
    assert "hardly fit this GPU's 80.0 GiB" in memory(full, None, [H100])
    assert "hardly" not in memory(full)


def test_a_model_that_is_not_here_is_not_reckoned() -> None:
    settings = RunSettings.model_validate({"model": {"name": "flux", "hub_id": "owner/name"}})
    assert times(settings) == []
    assert all_of(settings, None, []).endswith("is not known before the model is on this machine.")


def test_all_of_it_is_work_memory_and_time(tmp_path: Path) -> None:
    lines = all_of(RunSettings(), None, []).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["48", "About", "About"]
    assert len(all_of(RunSettings.model_validate({"compute": {"device": "cpu"}}), None, []).splitlines()) == 2


def test_less_memory_by_which_one_was_full(large: RunSettings) -> None:
    gpu, machine = "CUDA out of memory.", "it was ended by SIGKILL; the machine may have run out of memory."
    assert [str(change) for change in less_memory(large, gpu)] == ["model.quantisation to int8"]
    assert [str(change) for change in less_memory(large, machine)] == ["compute.micro_batch to 12"]
    assert less_memory(large, machine, devices=[H100]) == less_memory(large, "The prompts are gone.") == ()
