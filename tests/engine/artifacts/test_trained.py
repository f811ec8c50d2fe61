"""Which checkpoint a folder and a step name, and which of its weights are meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.artifacts.checkpoint import load_checkpoint
from engine.artifacts.manifest import CheckpointError
from engine.artifacts.trained import locate_checkpoint, read_trained

TinyRun = Callable[..., Path]


def test_a_run_means_its_newest_whole_checkpoint(tiny_run: TinyRun) -> None:
    run = tiny_run()
    checkpoints = run / "checkpoints"
    assert locate_checkpoint(run, None) == checkpoints / "step-000002"
    assert locate_checkpoint(run, 1) == checkpoints / "step-000001"
    assert locate_checkpoint(checkpoints / "step-000001", None) == checkpoints / "step-000001"
    (checkpoints / "step-000002" / "adapter.safetensors").write_bytes(b"broken")
    assert locate_checkpoint(run, None) == checkpoints / "step-000001"


def test_what_is_no_checkpoint_is_said(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        locate_checkpoint(tmp_path / "nowhere", None)
    with pytest.raises(CheckpointError, match="has no whole checkpoint yet"):
        locate_checkpoint(run / "samples", None)
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are checkpoints of the steps 1, 2"):
        locate_checkpoint(run, 7)
    with pytest.raises(CheckpointError, match="is one checkpoint, so there is no step to choose"):
        locate_checkpoint(run / "checkpoints" / "step-000001", 1)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_average_is_meant_where_there_is_one(tiny_run: TinyRun, method: str, decay: float) -> None:
    run = tiny_run(
        tuning={"method": method, "rank": 4}, optimiser={"learning_rate": 1e-3, "ema_decay": decay}, iterations=1
    )
    checkpoint = run / "checkpoints" / "step-000001"
    files, trained = load_checkpoint(checkpoint).tensors, read_trained(checkpoint)
    newest = files["adapter.safetensors" if method == "lora" else "transformer.safetensors"]
    expected = files["ema.safetensors"] if decay else newest
    assert (trained.averaged, trained.settings.tuning.method) == (decay > 0, method)
    assert trained.tensors.keys() == expected.keys()
    assert all(torch.equal(trained.tensors[name], tensor) for name, tensor in expected.items())
    differs = any(not torch.equal(trained.tensors[name], tensor) for name, tensor in newest.items())
    assert differs == (decay > 0)
