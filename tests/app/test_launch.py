"""`palate up`: refusals, the demo, and a whole start and stop with a fake engine, twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import launch
from app.demo import DEMO_NAME, queue_demo
from app.loopback import is_loopback
from app.server import main as serve
from engine.presets import PRESETS
from store.config import Config
from store.database import Database
from store.runs import RunSummary, list_runs
from store.schema import upgrade
from tests.app.conftest import Workbench
from tests.installations import environment_of, fake_engine, make_config


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.4", False), ("palate.example", False)],
)
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    if not loopback:
        with pytest.raises(launch.LaunchError, match="no log-in"):
            launch.check_host(host)


def test_server_alone_refuses_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PALATE_HOST", "0.0.0.0")
    assert serve([]) == 2
    assert "no log-in" in capsys.readouterr().err


def test_busy_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(launch.LaunchError, match=f"Port {port}"):
            launch.check_port("127.0.0.1", port)


def test_bad_settings_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALATE_DATABASE_URL", "mysql://x")
    with pytest.raises(launch.LaunchError, match="PALATE_DATABASE_URL"):
        launch.up(demo=False, host=None, port=None)


def test_home_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PALATE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(launch.LaunchError, match="PALATE_HOME"):
        launch.up(demo=False, host=None, port=None)


def test_demo_is_queued_once(empty_workbench: Workbench) -> None:
    assert queue_demo(empty_workbench.database, empty_workbench.config) is True
    assert queue_demo(empty_workbench.database, empty_workbench.config) is False
    with empty_workbench.database.read() as session:
        (run,) = list_runs(session)
    assert (run.name, run.is_demo, run.state) == (DEMO_NAME, True, "queued")


def test_demo_leaves_a_workbench_in_use_alone(workbench: Workbench) -> None:
    assert queue_demo(workbench.database, workbench.config) is False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


MARK = "WORKBENCH_UNDER_TEST"  # not one of Palate's own, which the engine is not given


@contextmanager
def workbench_up(config: Config, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`palate up` as a process; whatever the test finds, nothing of it lives on."""
    environment = environment_of(config) | {MARK: str(config.home)}
    command = [sys.executable, "-m", "app.cli", "up", *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise


def processes_of(home: Path) -> list[str]:
    """Living processes that were started on this data home."""
    marker = f"{MARK}={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # ended meanwhile
    return found


def only_run(database: Database) -> RunSummary:
    with database.read() as session:
        (run,) = list_runs(session)
    return run


def wait_until(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_up_serves_works_stops_and_starts_again(tmp_path: Path) -> None:
    """The page answers, the demo trains; SIGTERM leaves nobody behind, and the run goes on at the next start."""
    config = make_config(tmp_path / "home", port=free_port(), engine_command=fake_engine("--delay", "0.3"))
    upgrade(config)
    database = Database(config)
    steps = []
    for _ in range(2):
        with workbench_up(config) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Palate is at" in line:
                    break
            assert f"http://127.0.0.1:{config.port}" in lines[-1], lines
            with urllib.request.urlopen(f"http://127.0.0.1:{config.port}/", timeout=10) as page:
                assert page.status == 200
            before = only_run(database).step
            wait_until(lambda before=before: only_run(database).step > before + 1)
            assert len(processes_of(config.home)) >= 4  # this command, the worker, the workbench, the engine
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
        assert process.returncode == 0
        assert "Stopped." in rest
        assert processes_of(config.home) == []
        steps.append(only_run(database).step)
    assert only_run(database).state == "queued"
    assert 0 < steps[0] < steps[1] < PRESETS["builtin_balance"].make().iterations
    database.dispose()


def test_second_workbench_on_one_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setenv("PALATE_HOME", str(tmp_path))
    with FileLock(tmp_path / "palate.lock"), pytest.raises(launch.LaunchError, match="already running"):
        launch.up(demo=False, host=None, port=free_port())


def test_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    config = make_config(tmp_path / "home", port=free_port())
    with workbench_up(config, "--no-demo") as up:
        assert up.stdout is not None
        assert any("Palate is at" in line for line in up.stdout)

        def worker() -> int | None:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    status = (folder / "stat").read_text().rpartition(")")[2].split()
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if status[1] == str(up.pid) and b"workers" in words:
                    return int(folder.name)
            return None

        wait_until(worker)
        first = worker()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: worker() not in (None, first))
        up.send_signal(signal.SIGTERM)
        said = up.stdout.read()
    assert "The worker ended by itself (code -9) and is started again" in said
    assert up.returncode == 0
