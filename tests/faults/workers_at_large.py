"""Real worker processes on an installation, started, hit and watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from store import files, results, runs
from store.config import PROJECT_ROOT, Config
from store.database import Database
from store.runs import RunDetail
from tests.installations import environment_of
from tests.workers.fake_engine import reward_at

PATIENCE = 240.0  # most of it is never needed; a busy machine takes its time to start a worker


@contextmanager
def worker(config: Config, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process; killed at the end if it is still there."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers", "--with-parent"],
            cwd=PROJECT_ROOT, env=environment_of(config), stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def detail(database: Database, run_id: str) -> RunDetail:
    with database.read() as session:
        found = runs.get_run(session, run_id)
    assert found is not None
    return found


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.03)


def wait_for_step(database: Database, run_id: str, step: int) -> None:
    wait_for(lambda: detail(database, run_id).step >= step, f"step {step}")


def wait_for_state(database: Database, run_id: str, state: str) -> RunDetail:
    wait_for(lambda: detail(database, run_id).state == state, f"the run to be {state}")
    return detail(database, run_id)


def engines_of(config: Config) -> list[int]:
    """The process ids of the engines that work in this installation's home."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--out" in words and any(word.startswith(os.fsencode(config.home)) for word in words):
                found.append(int(folder.name))
    return found


def assert_whole(config: Config, database: Database, run_id: str) -> None:
    """Every row of a finished run exactly once, with the right figures; every file a row names is there."""
    found = detail(database, run_id)
    with database.read() as session:
        metrics = results.metrics_of(session, run_id)
        drawn = [row.step for row in results.sample_steps_of(session, run_id)]
        images = results.samples_of(session, run_id)
        checkpoints = results.checkpoints_of(session, run_id)
    assert [row.step for row in metrics] == list(range(1, found.iterations + 1))
    assert [row.rewards["composition"] for row in metrics] == [reward_at(row.step) for row in metrics]
    assert drawn == list(range(0, found.iterations + 1, found.settings.evaluation.every))
    assert [(row.step, row.index) for row in images] == [(step, index) for step in drawn for index in (0, 1)]
    for path in (*(row.path for row in images), *(row.path for row in checkpoints)):
        assert files.resolve(config, path).exists()
    assert checkpoints[0].step == found.iterations
