"""What a worker says that it computes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.catalogue.gpus import find_gpu
from workers.device import device_here, gpu_name


def write_gpu(folder: Path, bus: str, name: str) -> None:
    """As NVIDIA's driver shows one."""
    (folder / bus).mkdir(parents=True)
    (folder / bus / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 89\nGPU UUID: \t GPU-1\n")


def test_gpus_are_named_by_the_driver(tmp_path: Path) -> None:
    assert gpu_name(tmp_path) == ""
    write_gpu(tmp_path, "0000:01:00.0", "NVIDIA H100 80GB HBM3")
    write_gpu(tmp_path, "0000:02:00.0", "NVIDIA H100 80GB HBM3")
    assert gpu_name(tmp_path) == "NVIDIA H100 80GB HBM3"
    assert getattr(find_gpu(gpu_name(tmp_path)), "name", None) == "H100"
    write_gpu(tmp_path, "0000:03:00.0", "NVIDIA GeForce RTX 4090")
    assert gpu_name(tmp_path) == "", "which of them a run gets is not known"


@pytest.mark.parametrize(("visible", "expected"), [("", "cpu"), ("1", "cuda:1")])
def test_what_is_hidden_is_not_there(monkeypatch: pytest.MonkeyPatch, visible: str, expected: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_here().split(" ")[0] == expected
