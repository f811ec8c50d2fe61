"""Starting ranks: they end together, say one sentence, and hear a request to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from engine.launch import FAULT, MISTAKE, check_devices, launch
from engine.settings import ComputeSettings

# torch's launcher leaves a rank's log open where the rank ended by itself; the process that launches ends soon after.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in.*logs:pytest.PytestUnraisableExceptionWarning")


def start(program: str, tmp_path: Path, num_processes: int = 2) -> int:
    """Launch Python text whose `rank` is a rank's number and `here` a folder."""
    preamble = f"import os, signal, sys, time; from pathlib import Path; here = Path({str(tmp_path)!r}); "
    preamble += "rank = int(os.environ['RANK'])\n"
    return launch([sys.executable, "-c", preamble + program], num_processes, tmp_path / "logs")


def test_ranks_know_their_places(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = "(here / str(rank)).write_text(os.environ['WORLD_SIZE']); print('to nobody', file=sys.stderr)"
    assert start(program, tmp_path, 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["3", "3", "3"]
    assert capfd.readouterr().err == ""
    assert (tmp_path / "logs" / "2.log").read_text() == "to nobody\n"


def test_a_rank_that_fails_ends_the_others_with_its_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = "if rank == 1: sys.exit(print('The file is gone.', file=sys.stderr) or 2)\ntime.sleep(300)"
    begun = time.monotonic()
    assert start(program, tmp_path) == MISTAKE
    assert time.monotonic() - begun < 60
    assert capfd.readouterr().err == "The file is gone.\n"


def test_a_mistake_of_all_ranks_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start("print('No such model.', file=sys.stderr); sys.exit(2)", tmp_path) == MISTAKE
    assert capfd.readouterr().err == "No such model.\n"


def test_a_mistake_counts_before_the_faults_that_follow_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Who loses another rank may be gone before the launcher looks again; its broken connection is not the cause."""
    program = (
        "while rank == 0 and not (here / 'logs' / '1.log').read_text(): time.sleep(0.001)\n"
        "print(['Connection closed.', 'The disk is full.'][rank], file=sys.stderr); sys.exit([1, 2][rank])"
    )
    assert start(program, tmp_path) == MISTAKE
    assert capfd.readouterr().err == "The disk is full.\n"


def test_a_rank_that_is_killed_is_a_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(300)"
    assert start(program, tmp_path) == FAULT
    assert capfd.readouterr().err == (
        "Process 2 of the run was ended by SIGKILL; the machine may have run out of memory.\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "def stop(*_): (here / f'stopped {rank}').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); (here / f'ready {rank}').touch(); time.sleep(300)"
    )

    def ask() -> None:
        while not all((tmp_path / f"ready {rank}").exists() for rank in range(2)):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    asking = threading.Thread(target=ask)
    asking.start()
    assert start(program, tmp_path) == 0
    asking.join()
    assert {path.name for path in tmp_path.glob("stopped *")} == {"stopped 0", "stopped 1"}
    assert signal.getsignal(number) == before


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_devices(ComputeSettings(num_processes=2))
    check_devices(ComputeSettings(num_processes=3, device="cpu"))
    with pytest.raises(ValueError, match="torch sees only 2 here"):
        check_devices(ComputeSettings(num_processes=3))
