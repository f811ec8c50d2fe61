"""Micro-batches sized by trying, on a CPU whose memory has a limit of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine import probing
from engine.batching import DeviceFullError
from engine.events import Event, IterationDone, Message
from engine.memory import device_memory, largest_batch
from engine.ranks import Ranks
from engine.run import Run, prepare
from engine.settings import RunSettings
from engine.train import train
from tests.engine.limited_memory import LimitedMemory


def test_the_largest_batch_keeps_to_a_share_of_what_is_free() -> None:
    tried: list[int] = []

    def work(count: int) -> torch.Tensor:
        tried.append(count)
        return torch.ones(count, 250)  # 1 kB each

    with LimitedMemory(20_000) as memory:
        assert largest_batch(memory, 100, work) == 16
        # 85 % of it: 17 kB; 32 images are refused.
        assert (tried, memory.refusals) == ([1, 2, 4, 8, 16, 32], 1)
        assert largest_batch(memory, 12, work) == 12
        assert largest_batch(memory, 100, work, reserved=10_000) == 8
    with LimitedMemory(18_000) as memory:
        # 16 images fit, but take more than their share.
        assert largest_batch(memory, 100, work) == 8
    with LimitedMemory(1_100) as memory:
        assert largest_batch(memory, 100, work) == 1
    with LimitedMemory(900) as memory:
        assert largest_batch(memory, 100, work) == 0


def probed(settings: RunSettings, out: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[Event]]:
    """A run sized to a memory that leaves it some MB."""
    told: list[Event] = []
    run = prepare(settings, out, told.append, None)
    memory = LimitedMemory(share * 1e6)
    monkeypatch.setattr(probing, "device_memory", lambda device: memory)
    with memory:
        probing.size_batches(run)
    return run, told


def test_each_phase_gets_a_size_of_its_own_and_nothing_is_left_behind(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(tiny_settings, tmp_path, lambda _: None, None).trainable.state()
    large, told = probed(tiny_settings, tmp_path, 100, monkeypatch)
    sizes = large.sizes
    # All of an iteration's images at once: there is room for more than there are.
    assert (sizes.sample.limit, sizes.decode.limit, sizes.train.limit) == (8, 8, 8)
    (message,) = [event.text for event in told if isinstance(event, Message) and "Sized" in event.text]
    assert "8 images at a time while drawing, 8 while decoding, 8 in training" in message
    assert large.counter.count == 0
    assert all(parameter.grad is None for parameter in large.trainable.parameters.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in large.trainable.state().items())

    small = probed(tiny_settings, tmp_path, 0.5, monkeypatch)[0].sizes
    # Training keeps activations, so it takes fewer at a time than drawing.
    assert 1 <= small.train.limit < small.sample.limit <= 8


def test_where_not_one_image_fits_the_run_ends_with_what_to_change(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceFullError, match=r"One image alone does not fit.*model\.precision"):
        probed(tiny_settings, tmp_path, 0.005, monkeypatch)


@pytest.mark.parametrize("changes", [{"micro_batch": 3}, {"sharding": "fsdp"}], ids=["a number", "in parts"])
def test_nothing_is_tried_where_a_number_is_given(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    data = tiny_settings.model_dump()
    full = {"tuning": {"method": "full"}, "compute": data["compute"] | changes}
    run = prepare(RunSettings.model_validate(data | full), tmp_path, lambda _: None, None)
    run.ranks = Ranks(sharded=run.settings.compute.sharding == "fsdp")
    before = run.sizes.sample.limit
    monkeypatch.setattr(run.model, "decode", None)
    monkeypatch.setattr(probing, "device_memory", lambda device: LimitedMemory(1e9))
    probing.size_batches(run)
    assert run.sizes.sample.limit == before


def test_a_run_sized_by_trying_is_the_run_of_any_size(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_memory(torch.device("cpu")) is None
    settings = RunSettings.model_validate(tiny_settings.model_dump() | {"iterations": 2})
    ends: list[list[IterationDone]] = []
    for name in ("plain", "sized"):
        events: list[Event] = []
        with LimitedMemory(1e12) as memory:
            # Room for two images in training: more are tried, and run out of it.
            if name == "sized":
                monkeypatch.setattr(probing, "device_memory", lambda device, of=memory: _narrowed(of, 3e5))
            train(settings, tmp_path / name, events.append)
        said = [event.text for event in events if isinstance(event, Message) and "Sized to" in event.text]
        assert len(said) == (name == "sized")
        ends.append([event for event in events if isinstance(event, IterationDone)])
    for one, other in zip(*ends, strict=True):
        assert other.rewards == pytest.approx(one.rewards, rel=1e-3)
        assert (other.num_forwards, other.num_trained_steps) == (one.num_forwards, one.num_trained_steps)
        assert other.ratio_drift <= 1e-6


def _narrowed(memory: LimitedMemory, room: float) -> LimitedMemory:
    """The memory, with little room left from now on."""
    memory.limit = memory.held + room
    return memory
