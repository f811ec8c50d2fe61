"""Images in parts: all of them once and in order, fewer at a time where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.artifacts.checkpoint import load_checkpoint
from engine.batching import BatchSize, DeviceFullError, attempt, decode, fixed_size, fixed_sizes
from engine.events import Event, IterationDone, Message, PhaseSeconds, SamplesDrawn
from engine.models import load_model
from engine.rewards import Pixels, Scores, score_all
from engine.run import prepare
from engine.settings import ComputeSettings, RunSettings
from engine.train import sample_and_score as sample
from engine.train import train, update
from tests.engine.limited_memory import LimitedMemory, held_after

CPU = torch.device("cpu")


def doubled(rows: slice) -> torch.Tensor:
    """Twice the numbers of the rows, of 1000 floats each."""
    return torch.arange(rows.start, rows.stop).float()[:, None].expand(-1, 1000).clone() * 2


def test_parts_come_in_order_at_most_so_many_at_a_time() -> None:
    seen: list[int] = []

    def work(rows: slice) -> list[int]:
        seen.append(rows.stop - rows.start)
        return list(range(rows.start, rows.stop))

    assert BatchSize("sample", 4).map(10, work) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert seen == [4, 4, 2]
    assert BatchSize("sample", 4).map(0, work) == []


def test_a_part_that_does_not_fit_is_done_again_in_halves() -> None:
    told: list[str] = []
    size = BatchSize("decode", 16, told.append)
    # Room for the results, and for the work on two rows more: a row takes 4 kB, and as much again on the way.
    with LimitedMemory(10 * 4000 + 2 * 8000) as memory:
        parts = size.map(10, doubled)
    assert torch.equal(torch.cat(parts)[:, 0], 2 * torch.arange(10.0))
    # All ten at first; later five, beside the five that are done.
    assert memory.refusals == 2
    assert size.limit == 2
    assert told[0].startswith("10 images at a time did not fit the memory of the device while decoding; going on")


def test_what_an_attempt_held_is_let_go() -> None:
    with LimitedMemory(1e6) as memory:
        kept = torch.ones(1000)
        before = held_after(memory)
        assert attempt(lambda: [torch.ones(100_000) for _ in range(10)]) is None
        assert held_after(memory) == before == kept.nbytes


@pytest.mark.parametrize(
    ("phase", "remedy"),
    [("sample", "model.precision"), ("decode", "model.resolution"), ("score", "reward"), ("train", "checkpointing")],
)
def test_one_image_that_does_not_fit_ends_with_what_to_change(phase, remedy) -> None:
    with LimitedMemory(3000), pytest.raises(DeviceFullError, match=rf"One image alone does not fit.*{remedy}"):
        BatchSize(phase, 8).map(8, doubled)


def test_ranks_that_run_the_model_together_do_not_try_again_alone() -> None:
    with LimitedMemory(20_000), pytest.raises(DeviceFullError, match=r"set compute\.micro_batch to 4\."):
        BatchSize("train", 8, recovers=False).map(8, doubled)


def test_sizes_on_a_cpu_do_not_depend_on_the_machine() -> None:
    assert fixed_size(ComputeSettings(), CPU) == 48
    assert fixed_size(ComputeSettings(micro_batch=7), CPU) == 7
    sizes = fixed_sizes(48, CPU)
    assert (sizes.sample.limit, sizes.decode.limit, sizes.train.limit) == (48, 24, 48)
    with pytest.raises(ValueError, match="micro_batch"):
        ComputeSettings(micro_batch=0)


def test_images_are_decoded_a_part_at_a_time(tiny_settings: RunSettings) -> None:
    model = load_model(tiny_settings.model)
    latents = model.noise(torch.Generator().manual_seed(0), 5)
    one_by_one = np.concatenate([model.decode(latents[i : i + 1]) for i in range(5)])
    assert np.array_equal(decode(model, latents, 1), one_by_one)
    # Rounding may put a pixel on its other side.
    assert np.abs(decode(model, latents, 3).astype(int) - one_by_one).max() <= 1


def test_a_reward_that_fills_the_memory_is_asked_about_fewer_images() -> None:
    class Judge:
        def check_prompts(self, prompts) -> None:
            """Any will do."""

        def score(self, images: Pixels, prompts) -> Scores:
            value = torch.from_numpy(images).float().expand(-1, 10, 10, 3).clone().mean((1, 2, 3)).numpy()
            return Scores(value, {"twice": 2 * value})

    images = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1).repeat(3, 3)
    prompts = [str(i) for i in range(9)]
    # Four images' work at most: 1200 bytes each, and as much again on the way.
    size = BatchSize("score", 100)
    with LimitedMemory(6000) as memory:
        scored = score_all({"judge": Judge()}, images, prompts, size)
    assert memory.refusals
    assert size.limit < 9
    assert np.array_equal(scored.values["judge"], np.arange(9))
    assert np.array_equal(scored.extras["twice"], 2 * np.arange(9))
    assert scored.messages == ()
    with LimitedMemory(1000), pytest.raises(DeviceFullError):
        score_all({"judge": Judge()}, images, prompts, size)


def test_memory_that_runs_out_in_training_changes_nothing_but_rounding(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    """Out of memory in the middle of a backward pass, with part of the gradient added already."""
    plenty = LimitedMemory(1e12)
    enough = _updated(kl_run(tiny_settings), tmp_path / "enough", plenty)
    scarce = LimitedMemory(0.7 * plenty.most)
    little = _updated(kl_run(tiny_settings), tmp_path / "little", scarce)
    assert (plenty.refusals, scarce.refusals > 0) == (0, True)
    assert enough.told == []
    assert all("while training; going on with" in text for text in little.told)
    assert little.told
    # Counted once, though some were done again.
    assert enough.num_forwards == little.num_forwards > 0
    for key, gradient in enough.gradients.items():
        torch.testing.assert_close(little.gradients[key], gradient, rtol=1e-4, atol=1e-7)
    assert max(float(gradient.abs().max()) for gradient in enough.gradients.values()) > 1e-4


@dataclass(frozen=True)
class Updated:
    """One update: the gradients it was taken with, the forwards counted in it, and the warnings."""

    gradients: dict[str, torch.Tensor]
    num_forwards: int
    told: list[str]


def _updated(settings: RunSettings, out: Path, memory: LimitedMemory) -> Updated:
    """The one update of an iteration, within a memory."""
    events: list[Event] = []
    run = prepare(settings, out, events.append, None)
    batch = sample(run)
    run.counter.take()
    gradients: list[dict[str, torch.Tensor]] = []
    run.optimiser.register_step_pre_hook(lambda *_: gradients.append(gradients_of(run)))
    with memory:
        update(run, batch)
    assert len(gradients) == 1
    told = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    return Updated(gradients[0], run.counter.take(), told)


def kl_run(settings: RunSettings) -> RunSettings:
    """One update an iteration, compared with the base model."""
    grpo = {"prompts_per_iteration": 2, "group_size": 4, "updates_per_iteration": 1, "kl_weight": 0.1}
    return RunSettings.model_validate(settings.model_dump() | {"grpo": grpo})


def gradients_of(run) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in run.trainable.parameters.items() if p.grad is not None}


def test_a_run_goes_on_when_memory_grows_scarce(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """After its first iteration, which had enough of it, as when another program takes a part of a GPU."""
    settings = RunSettings.model_validate(tiny_settings.model_dump() | {"iterations": 2})
    plenty = LimitedMemory(1e12)
    much = _trained(settings, tmp_path / "much", plenty, lambda: None)

    def grow_scarce() -> None:
        scarce.limit = held_after(scarce) + 0.5 * plenty.of_iteration

    scarce = LimitedMemory(1e12)
    little = _trained(settings, tmp_path / "little", scarce, grow_scarce)
    assert plenty.refusals == 0
    assert scarce.refusals > 0
    assert little[0] == much[0]
    one, other = much[1], little[1]
    assert other.rewards == pytest.approx(one.rewards, rel=1e-3)
    assert (other.num_forwards, other.num_trained_steps) == (one.num_forwards, one.num_trained_steps)
    assert other.ratio_drift <= 1e-6
    assert load_checkpoint(tmp_path / "little" / "checkpoints" / "step-000002").step == 2


def _trained(
    settings: RunSettings, out: Path, memory: LimitedMemory, after_first: Callable[[], None]
) -> list[IterationDone]:
    """The iterations of a run, without what a clock says; `memory.of_iteration` is what the first held at most."""
    done: list[IterationDone] = []

    def emit(event: Event) -> None:
        if isinstance(event, SamplesDrawn) and event.step == 0:
            memory.most = held_after(memory)
        if isinstance(event, IterationDone):
            nothing = PhaseSeconds(sample=0, decode=0, score=0, train=0)
            done.append(event.model_copy(update={"time": 0.0, "seconds": nothing, "eta_seconds": 0.0}))
        if isinstance(event, IterationDone) and event.step == 1:
            memory.of_iteration = memory.most - held_after(memory)
            after_first()

    with memory:
        train(settings, out, emit)
    return done
