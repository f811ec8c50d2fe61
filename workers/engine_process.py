"""One engine process in a session of its own: started, asked to stop, killed, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from engine.parent import told_to_children
from engine.servers.allowed import KEYS_VARIABLE, SERVERS_VARIABLE
from store.config import PROJECT_ROOT

EXIT_USER_MISTAKE = 2


class EngineProcess:
    """A running engine and its children. On exit of the block, whatever is left of them is killed.

    Start it from a thread that outlives it: the engine asks the kernel to die with the thread that started it.
    """

    def __init__(self, command: Sequence[str], *, log: Path, output: Path | None = None) -> None:
        """Start `command`; stderr goes to the end of `log`, stdout to `output` (or `log`)."""
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as errors, (output or log).open("ab") as lines:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=errors,
                cwd=PROJECT_ROOT,
                env=engine_environment() | told_to_children(),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process id, which is also its group's and its session's."""
        return self._process.pid

    def wait(self, seconds: float) -> int | None:
        """The exit code (negative = the signal that ended it), or None if it still runs after `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def terminate(self) -> None:
        """Ask the engine for a checkpoint and an end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the engine and all it started, now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # The group may outlive its leader: a data loader, say.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def engine_environment() -> dict[str, str]:
    """The worker's environment without its own settings: the engine needs no database, and should know no password.

    What the operator says of reward servers is the engine's.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PALATE_") or name in (SERVERS_VARIABLE, KEYS_VARIABLE)
    }
    return {**environment, "PYTHONUNBUFFERED": "1"}


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
    return f"it was ended by {name}{hint}"


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The last lines of a log, without blank ones; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64_000))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-num_lines:]
