"""Several processes train as one does: the same draws, losses, gradients and weights, checkpoints for each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.artifacts.checkpoint import load_checkpoint
from engine.events import Event, IterationDone, SamplesDrawn, parse_event
from engine.launch import launch
from engine.ranks import ALONE, Ranks, Share
from engine.settings import RunSettings
from engine.train import train

# torch's launcher leaves a rank's log open where the rank ended by itself; the process that launches ends soon after.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*logs:pytest.PytestUnraisableExceptionWarning")

TOLERANCE = 1e-5
# Weights that differ by a rounding may draw a value that rounds to the other of two bytes; the scores then differ by
# that pixel, and a gradient, which is made of small differences of scores, by more than they do.
TOLERANCE_WITH_ANOTHER_PIXEL = 1e-3
GRPO = {"prompts_per_iteration": 2, "group_size": 4, "updates_per_iteration": 2}
# One image a forward: with other batches floating point rounds otherwise, and a pixel may fall on its other side.
COMPUTE = {"device": "cpu", "num_threads": 1, "num_processes": 2, "micro_batch": 1}
IN_PARTS = {
    "tuning": {"method": "full"},
    "optimiser": {"learning_rate": 1e-4, "ema_decay": 0.9},
    # A group a forward; two images an update: where a rank has none to train at a step, it must keep in step.
    "compute": COMPUTE | {"sharding": "fsdp", "micro_batch": 4},
    "grpo": GRPO | {"updates_per_iteration": 4},
}
NFT = {
    "method": "nft", "nft": {"timesteps_per_image": 3},
    "sampling": {"num_steps": 6, "shared_noise": False, "shared_prefix": False},
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    # An image an update: one of the ranks has none.
    "MixGRPO": {"grpo": GRPO | {"updates_per_iteration": 8}},
    # Three prompts: one rank has two of them.
    "global std, best and worst": {
        "grpo": GRPO | {"prompts_per_iteration": 3, "advantage_std": "global", "best_and_worst": 1, "trim": 0.25},
        "window": {"size": 4, "trained_fraction": 0.5},
    },
    "NFT": NFT,
    "in parts, KL": IN_PARTS | {
        "grpo": GRPO | {"updates_per_iteration": 4, "kl_weight": 0.1},
        "sampling": {"num_steps": 6, "shared_prefix": False},
        "window": {"size": 4, "trained_fraction": 0.5},
    },
    "in parts, NFT": IN_PARTS | NFT,
}
GOING_ON = ("MixGRPO", "in parts, KL")


@dataclass(frozen=True)
class Pair:
    """The folders of runs by variant: by one process, by two, and by two that went on from the one's second step."""

    settings: dict[str, RunSettings]
    alone: Path
    together: Path
    gone_on: Path


@pytest.fixture(scope="module")
def pair(
    tiny_settings_in: Callable[[Path], RunSettings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as environment:
        folder = tmp_path_factory.mktemp("ranks")
        environment.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield _trained_pair(tiny_settings_in(folder), folder)


def _trained_pair(tiny_settings: RunSettings, folder: Path) -> Pair:
    base = tiny_settings.model_dump() | {
        "iterations": 3, "compute": COMPUTE, "sampling": {"num_steps": 6}, "checkpoints": {"every": 2},
        # AdamW's first steps have the size of the rate even where a gradient is nothing but its rounding.
        "optimiser": {"learning_rate": 1e-4},
        # Three prompts for two ranks: one is drawn twice.
        "evaluation": {"every": 3, "num_prompts": 3, "num_steps": 2}, "prompts": {"file": str(folder / "prompts.txt"),
        "evaluation_file": str(folder / "prompts.txt")},
    }  # fmt: skip
    settings = {name: RunSettings.model_validate(base | changes) for name, changes in VARIANTS.items()}
    made = Pair(settings, folder / "alone", folder / "together", folder / "gone on")
    for name in VARIANTS:
        _train_alone(settings[name], made.alone / name)
    jobs = [_job(settings[name], made.together / name) for name in VARIANTS]
    jobs += [_job(settings[name], made.gone_on / name, made.alone / name) for name in GOING_ON]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = Path(__file__).with_name("rank_program.py")
    assert launch([sys.executable, str(program), str(folder / "jobs.json")], 2, folder / "logs") == 0
    return made


def _job(settings: RunSettings, out: Path, earlier: Path | None = None) -> dict[str, Any]:
    out.mkdir(parents=True)
    checkpoint = str(_checkpoint(earlier, 2)) if earlier else None
    return {"settings": settings.model_dump(mode="json"), "out": str(out), "checkpoint": checkpoint}


def _train_alone(settings: RunSettings, out: Path, earlier: Path | None = None) -> None:
    out.mkdir(parents=True)
    events: list[Event] = []
    train(settings, out, events.append, checkpoint=load_checkpoint(_checkpoint(earlier, 2)) if earlier else None)
    (out / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))


def _checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def _events(run: Path) -> list[Event]:
    return [parse_event(line) for line in (run / "events.jsonl").read_text().splitlines()]


def _assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = (load_checkpoint(_checkpoint(folder, 3)).tensors for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for file, tensors in theirs.items():
        assert ours[file].keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(ours[file][key], tensor, atol=TOLERANCE, rtol=0)


def _first_scores(events: list[Event]) -> dict[str, float]:
    return next(event for event in events if isinstance(event, IterationDone)).rewards


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_as_one(pair: Pair, name: str) -> None:
    alone, together = _events(pair.alone / name), _events(pair.together / name)
    assert [event.kind for event in together] == [event.kind for event in alone]
    iterations = [event for event in alone if isinstance(event, IterationDone)]
    assert len(iterations) == 3
    assert _first_scores(together) == _first_scores(alone), "no weights differ yet"
    for ours, theirs in zip([e for e in together if isinstance(e, IterationDone)], iterations, strict=True):
        tolerance = TOLERANCE if ours.rewards == theirs.rewards else TOLERANCE_WITH_ANOTHER_PIXEL
        assert ours.rewards == pytest.approx(theirs.rewards, rel=TOLERANCE)
        assert ours.spreads == pytest.approx(theirs.spreads, rel=tolerance)
        assert ours.loss == pytest.approx(theirs.loss, abs=tolerance)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=tolerance)
        assert ours.ratio_drift == pytest.approx(theirs.ratio_drift, abs=TOLERANCE)
        assert ours.clipped_share == pytest.approx(theirs.clipped_share, abs=TOLERANCE)
        assert ours.diversity == pytest.approx(theirs.diversity, rel=tolerance)
        assert ours.num_trained_steps == theirs.num_trained_steps > 0
        if pair.settings[name].compute.sharding == "none":
            assert ours.num_forwards == theirs.num_forwards
        else:
            assert ours.num_forwards >= theirs.num_forwards
    _assert_same_weights(pair.together / name, pair.alone / name)


@pytest.mark.parametrize("name", VARIANTS)
def test_held_out_prompts_are_drawn_once_and_in_their_order(pair: Pair, name: str) -> None:
    for ours, theirs in zip(_events(pair.together / name), _events(pair.alone / name), strict=True):
        if not isinstance(ours, SamplesDrawn) or not isinstance(theirs, SamplesDrawn):
            continue
        assert [(image.prompt, image.seed) for image in ours.images] == [(i.prompt, i.seed) for i in theirs.images]
        assert ours.rewards == pytest.approx(theirs.rewards, rel=1e-4)
        if ours.step == 0:
            for image in ours.images:
                assert (pair.together / name / image.path).read_bytes() == (pair.alone / name / image.path).read_bytes()


@pytest.mark.parametrize("name", GOING_ON)
def test_two_processes_go_on_from_the_checkpoint_of_one(pair: Pair, name: str) -> None:
    assert [event.step for event in _events(pair.gone_on / name) if isinstance(event, IterationDone)] == [3]
    _assert_same_weights(pair.gone_on / name, pair.alone / name)


@pytest.mark.parametrize("name", GOING_ON)
def test_one_process_goes_on_from_the_checkpoint_of_two(pair: Pair, name: str, tmp_path: Path) -> None:
    _train_alone(pair.settings[name], tmp_path / "run", pair.together / name)
    assert [event.step for event in _events(tmp_path / "run") if isinstance(event, IterationDone)] == [3]
    _assert_same_weights(tmp_path / "run", pair.together / name)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_shares_are_all_of_a_batch_and_draw_its_noise(world_size: int) -> None:
    shares = [Ranks(rank, world_size).share(5).times(2) for rank in range(world_size)]
    assert [row for share in shares for row in range(10)[share.rows]] == list(range(10))
    drawn = [
        share.normal(torch.zeros(3, share.stop - share.start, 2), torch.Generator().manual_seed(4), dim=1)
        for share in shares
    ]
    whole = torch.randn(3, 10, 2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.cat(drawn, dim=1), whole)


def test_places_are_counted_from_the_start_of_a_share() -> None:
    assert Share(4, 8, 12).own(torch.tensor([11, 4, 3, 7, 8])).tolist() == [0, 3]
    assert Share(4, 8, 12).own(torch.tensor([0, 8])).tolist() == []


def test_a_process_alone_hears_itself() -> None:
    assert ALONE.gather("word") == ["word"]
    assert ALONE.from_main(lambda: "made") == "made"
    assert ALONE.any(True) and not ALONE.any(False)
    assert ALONE.busiest(3) == 3
    weight = torch.nn.Parameter(torch.ones(2))
    ALONE.add_up_gradients([weight])
    assert weight.grad is None
