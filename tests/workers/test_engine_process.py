import os
import sys
import time
from pathlib import Path

import pytest

from workers.engine_process import EngineProcess, describe_exit, last_lines


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_leaving_the_block_ends_the_engine_and_its_children(tmp_path: Path) -> None:
    program = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    output = tmp_path / "out"
    with EngineProcess([sys.executable, "-c", program], log=tmp_path / "log", output=output) as engine:
        wait_until(lambda: output.read_text().endswith("\n"))
        child = int(output.read_text())
        assert os.getsid(engine.pid) == engine.pid
        assert os.getpgid(child) == engine.pid
        assert engine.wait(0.01) is None
    wait_until(lambda: not alive(child))
    assert not alive(engine.pid)


def test_the_exit_code_and_the_log(tmp_path: Path) -> None:
    program = "import sys; print('to out'); print('to err', file=sys.stderr); sys.exit(3)"
    with EngineProcess([sys.executable, "-c", program], log=tmp_path / "new" / "log") as engine:
        wait_until(lambda: engine.wait(0.1) == 3)
    assert sorted(last_lines(tmp_path / "new" / "log", 10)) == ["to err", "to out"]


def test_the_engine_knows_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALATE_DATABASE_URL", "postgresql://me:canary@host/db")
    monkeypatch.setenv("HARMLESS", "kept")
    program = "import os; print(dict(os.environ))"
    with EngineProcess([sys.executable, "-c", program], log=tmp_path / "log") as engine:
        wait_until(lambda: engine.wait(0.1) == 0)
    text = (tmp_path / "log").read_text()
    assert "canary" not in text
    assert "kept" in text


def test_an_end_in_words() -> None:
    assert describe_exit(1) == "it ended with exit code 1"
    assert describe_exit(-9) == "it was ended by SIGKILL; the machine may have run out of memory"
    assert describe_exit(-11) == "it was ended by SIGSEGV"


def test_last_lines_of_a_long_log(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none", 3) == []
    (tmp_path / "log").write_text("x" * 200_000 + "\n" + "\n".join(map(str, range(10))) + "\n\n")
    assert last_lines(tmp_path / "log", 3) == ["7", "8", "9"]
