"""Checkpoints against kills at every file boundary, full disks, flipped bytes, and what a run wants back."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ckpt_chaos import inject
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from engine.artifacts import tensor_files
from engine.artifacts.checkpoint import (
    CheckpointError,
    DiskFullError,
    clean_leftovers,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    verify,
)
from engine.settings import RunSettings
from engine.settings_text import read_settings

SETTINGS = RunSettings(seed=7)
VERSIONS = {"python": "3.11", "palate": "0.1.0"}


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.lora_A.weight": torch.randn(4, 3, generator=generator), "step": torch.tensor(float(step))}
    return {"adapter.safetensors": weights, "optimiser.safetensors": {"m": torch.randn(5, generator=generator)}}


def save(root: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(root, step, tensors_of(step), {"position": step}, SETTINGS, VERSIONS, keep)


def assert_equal(found: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for name, file in expected.items():
        assert found[name].keys() == file.keys()
        for key, tensor in file.items():
            assert found[name][key].dtype == tensor.dtype
            assert torch.equal(found[name][key].nan_to_num(), tensor.nan_to_num()), key


def assert_sound(root: Path, steps: set[int]) -> None:
    """The newest verifying checkpoint is one of `steps`, holds what was saved, and no folder pretends to be one."""
    newest = newest_checkpoint(root)
    assert newest is not None
    found = load_checkpoint(newest)
    assert found.step in steps
    assert found.state == {"position": found.step}
    assert_equal(found.tensors, tensors_of(found.step))
    for step, path in list_checkpoints(root):
        assert verify(path).step == step


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A run's checkpoints folder with steps 1 and 2."""
    root = tmp_path / "checkpoints"
    save(root, 1)
    save(root, 2)
    return root


def test_saves_and_loads(two: Path) -> None:
    found = load_checkpoint(two / "step-000002")
    assert_equal(found.tensors, tensors_of(2))
    assert found.state == {"position": 2}
    assert found.manifest.settings_digest == SETTINGS.digest()
    assert found.manifest.versions == VERSIONS
    assert read_settings(two / "step-000002" / "settings.yaml") == SETTINGS
    on_disk = {path.name for path in (two / "step-000002").iterdir()}
    assert on_disk == {"adapter.safetensors", "optimiser.safetensors", "state.json", "settings.yaml", "manifest.json"}
    assert found.manifest.num_bytes == sum(
        path.stat().st_size for path in (two / "step-000002").iterdir() if path.name != "manifest.json"
    )


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]),
    state=st.dictionaries(
        st.text(max_size=5), st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    ),
    transpose=st.booleans(),
    step=st.integers(0, 1_000_000),
)
@settings(max_examples=40, deadline=None)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    dtype: torch.dtype,
    state: dict[str, Any],
    transpose: bool,
    step: int,
) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    # A transposed view is not contiguous, which safetensors refuses unless it is copied.
    tensor = tensor.permute(tuple(reversed(range(tensor.dim())))) if transpose else tensor
    tensors = {"adapter.safetensors": {"x": tensor, "ø": torch.ones(1)}}
    root = tmp_path_factory.mktemp("run")
    found = load_checkpoint(save_checkpoint(root, step, tensors, state, SETTINGS, VERSIONS, keep=1))
    assert_equal(found.tensors, tensors)
    assert found.state == state
    assert found.step == step


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=3)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [20, 30, 40]
    save(tmp_path, 50, keep=1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [50]
    assert hidden(tmp_path) == []


def test_a_run_that_went_back_drops_the_future_it_left(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, keep=3)
    save(tmp_path, 15, keep=3)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [10, 15]


def test_saving_a_step_again_replaces_it(two: Path) -> None:
    save_checkpoint(two, 2, tensors_of(2), {"position": "again"}, SETTINGS, VERSIONS, keep=2)
    assert load_checkpoint(two / "step-000002").state == {"position": "again"}
    assert hidden(two) == []


# Kills ----------------------------------------------------------------------------------------------------------------


def killed_at(root: Path, event: int, mode: str, step: int) -> bool:
    """Save `step` in a forked process that dies at the `event`-th change under `root`; whether it did die."""
    child = os.fork()
    if child == 0:
        try:
            inject.arm(str(root), crash_at=event, mode=mode, torn_python=True)
            save(root, step)
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 137), "the child failed by itself"
    return status == 137


@pytest.mark.parametrize(("mode", "step"), [("before", 3), ("torn", 3), ("unsynced", 3), ("before", 2)])
def test_a_kill_at_any_file_boundary_loses_nothing(tmp_path: Path, two: Path, mode: str, step: int) -> None:
    num_kills = 0
    for event in range(1, 100):
        root = tmp_path / f"killed-{event}"
        shutil.copytree(two, root)
        killed = killed_at(root, event, mode, step)
        clean_leftovers(root)
        assert_sound(root, {2, step})
        save(root, step)
        assert_sound(root, {step})
        assert hidden(root) == []
        if not killed:
            break
        num_kills += 1
    # Two weight files, two texts, the manifest, the folder and its rename: fewer means the hooks saw nothing.
    assert num_kills >= 8


def test_looking_for_the_newest_leaves_a_running_save_alone(two: Path) -> None:
    (two / ".writing-step-000003").mkdir()
    newest_checkpoint(two)
    assert hidden(two) == [".writing-step-000003"]


# Full disks -----------------------------------------------------------------------------------------------------------


class FullDisk:
    """Raises ENOSPC at the `fail_at`-th operation that could need space."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.count, self.fail_at = 0, fail_at
        for owner, name in ((os, "fsync"), (os, "mkdir"), (os, "rename"), (tensor_files, "save_file")):
            monkeypatch.setattr(owner, name, self.limited(getattr(owner, name)))
        real_open = io.open
        writing = self.limited(real_open)
        monkeypatch.setattr(io, "open", lambda *a, **k: (writing if "w" in str(a[1:2]) else real_open)(*a, **k))

    def limited(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return operation(*args, **kwargs)

        return run


def test_a_disk_that_fills_at_any_write_keeps_the_old_checkpoint(tmp_path: Path, two: Path) -> None:
    num_failures = 0
    for fail_at in range(1, 100):
        root = tmp_path / f"full-{fail_at}"
        shutil.copytree(two, root)
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = FullDisk(monkeypatch, fail_at)
            try:
                save(root, 3)
            except DiskFullError as error:
                assert "MB are free" in str(error)
                num_failures += 1
        if disk.count < fail_at:
            break
        assert_sound(root, {2, 3})
        assert (root / "step-000002").is_dir()
        assert hidden(root) in ([], [".trash-step-000001"])
    assert num_failures >= 12


def test_too_little_free_disk_is_told_before_writing(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(two)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    with pytest.raises(DiskFullError, match=r"needs 1 MB and 0 MB are free.*can then go on from its older checkpoints"):
        save(two, 3)
    assert [step for step, _ in list_checkpoints(two)] == [1, 2]


def test_safetensors_own_disk_full_is_understood(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        # The text of safetensors 0.8.0 on a full file system.
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(DiskFullError):
        save(two, 3)
    assert hidden(two) == []


def test_another_failure_is_not_called_a_full_disk(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(tensor_files, "save_file", denied)
    with pytest.raises(PermissionError):
        save(two, 3)
    assert_sound(two, {2})
    assert hidden(two) == []


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["adapter.safetensors", "optimiser.safetensors", "state.json", "settings.yaml", "manifest.json"]
)
def test_a_flipped_byte_falls_back_to_the_one_before(two: Path, name: str) -> None:
    file = two / "step-000002" / name
    data = bytearray(file.read_bytes())
    # The first byte of a manifest is its brace; of the others, any byte is under the digest.
    data[0 if name == "manifest.json" else len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        verify(two / "step-000002")
    assert newest_checkpoint(two) == two / "step-000001"
    # Saved again over the damaged one, it is whole.
    save(two, 2)
    assert newest_checkpoint(two) == two / "step-000002"


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_and_truncated_files_are_found(two: Path, damage: str) -> None:
    file = two / "step-000002" / "adapter.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors"):
        load_checkpoint(two / "step-000002")
    assert newest_checkpoint(two) == two / "step-000001"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_manifest_cannot_name_files_elsewhere(two: Path, name: str) -> None:
    file = two / "step-000002" / "manifest.json"
    data = json.loads(file.read_text())
    data["files"][name] = next(iter(data["files"].values()))
    file.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="names the file"):
        verify(two / "step-000002")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        verify(tmp_path)
