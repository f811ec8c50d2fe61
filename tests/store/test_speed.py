"""The speed that earlier runs had."""

from __future__ import annotations

from typing import Any

import pytest

from engine.builtin import WEIGHTS
from engine.events import IterationDone, PhaseSeconds, Started
from engine.flops import count_flops
from engine.model_size import ModelSize, read_size
from engine.settings import RunSettings
from engine.time_estimate import estimate_time
from engine.work import work_at
from store import results
from store.config import Config
from store.database import Database
from store.speed import measured_speed
from tests.installations import claim_run, queue_run

SECONDS = PhaseSeconds(sample=6.0, decode=1.0, score=0.5, train=4.0)


@pytest.fixture
def size() -> ModelSize:
    return read_size(WEIGHTS, RunSettings())


def record(database: Database, config: Config, settings: RunSettings, num_iterations: int) -> None:
    """A run's iterations, of which the first is slow."""
    _, job_id = queue_run(database, **settings.model_dump())
    lease = claim_run(database, config, job_id)
    work = work_at(settings, 0)
    with database.write() as session:
        results.record_started(session, lease, Started(time=1.0, step=0, iterations=9, device="cpu", versions={}))
        for step in range(1, num_iterations + 1):
            seconds = PhaseSeconds(sample=99.0, decode=99.0, score=9.0, train=99.0) if step == 1 else SECONDS
            results.record_iteration(session, lease, IterationDone(
                time=1.0, step=step, rewards={}, loss=0.1, grad_norm=1.0, ratio_drift=0.0, clipped_share=0.5,
                window_start=0, num_forwards=int(work.rollout + work.reference),
                num_trained_steps=int(work.trained_steps), seconds=seconds, eta_seconds=1.0,
            ))  # fmt: skip


def settings_of(**changes: Any) -> RunSettings:
    return RunSettings.model_validate({"window": {"strategy": "frozen"}} | changes)


@pytest.mark.parametrize("changes", [{}, {"sampling": {"guidance_scale": 3.0}}, {"grpo": {"kl_weight": 0.1}}])
def test_the_next_run_takes_as_long_as_the_last(
    either_database: Database, either_config: Config, size: ModelSize, changes: dict[str, Any]
) -> None:
    settings = settings_of(**changes)
    record(either_database, either_config, settings, 5)
    with either_database.read() as session:
        speed = measured_speed(session, settings, size)
    assert speed is not None
    estimate = estimate_time(size, settings, speed)
    # One rate for both: what they take together is what was measured.
    assert estimate.drawing + estimate.training == pytest.approx(6.0 + 4.0 + 1.0)
    assert 48 * speed.decoding == pytest.approx(1.0)


def test_other_work_takes_its_share(either_database: Database, either_config: Config, size: ModelSize) -> None:
    settings, full = settings_of(), settings_of(tuning={"method": "full"})
    record(either_database, either_config, settings, 5)
    with either_database.read() as session:
        speed = measured_speed(session, full, size)
    assert speed is not None
    work = work_at(full, 0)
    expected = work.trained_forwards * count_flops(size, full).training / speed.flops
    assert estimate_time(size, full, speed).training == pytest.approx(expected)


def test_other_models_and_short_runs_tell_nothing(
    either_database: Database, either_config: Config, size: ModelSize
) -> None:
    record(either_database, either_config, settings_of(), 2)
    record(either_database, either_config, settings_of(model={"precision": "bfloat16"}), 5)
    with either_database.read() as session:
        assert measured_speed(session, settings_of(), size) is None
        assert measured_speed(session, settings_of(compute={"num_threads": 1}), size) is None
        assert measured_speed(session, settings_of(model={"precision": "bfloat16"}), size) is not None
