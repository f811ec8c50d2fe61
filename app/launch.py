"""`palate up`: migrate the database, start one worker and the workbench, and end both together.

Each child leads a session of its own, so that Ctrl-C in the terminal reaches them once, from here, in order: the
worker first, which lets a running training write its checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import typer
from filelock import FileLock, Timeout

from app.demo import queue_demo
from app.loopback import is_loopback, open_to_others
from store.config import Config, ConfigError, load_config
from store.database import Database
from store.schema import SchemaError, upgrade

_START_SECONDS = 120.0
_QUICK_DEATHS = 3
_WORTH_SHOWING = ("WARNING", "ERROR", "CRITICAL", "Traceback")


class LaunchError(ValueError):
    """The workbench cannot start, in a sentence that says what to do."""


def up(*, demo: bool, host: str | None, port: int | None) -> int:
    """Run the workbench until Ctrl-C or SIGTERM; returns the exit code. Raises LaunchError if it cannot start."""
    config = _configured(host, port)
    check_host(config.host)
    _make_home(config)
    lock = FileLock(config.home / "palate.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LaunchError(f"A workbench is already running on {config.home}; end it first, or give this one a data "
                          "folder of its own with PALATE_HOME.") from None
    with lock:
        check_port(config.host, config.port)
        try:
            upgrade(config)
        except SchemaError as error:
            raise LaunchError(str(error)) from error
        if demo:
            _offer_demo(config)
        return _Household(config).run()


def _configured(host: str | None, port: int | None) -> Config:
    # The children read the same environment, so what the command line asks for goes there.
    for name, value in (("PALATE_HOST", host), ("PALATE_PORT", port)):
        if value is not None:
            os.environ[name] = str(value)
    try:
        return load_config()
    except ConfigError as error:
        raise LaunchError(str(error)) from error


def _make_home(config: Config) -> None:
    """The data folder, with a place for models unless the operator has named others."""
    try:
        (config.home / "logs").mkdir(parents=True, exist_ok=True)
        if not config.model_folders:
            config.model_roots[0].mkdir(exist_ok=True)
    except OSError as error:
        raise LaunchError(f"The data folder {config.home} cannot be made: {error.strerror}. Set PALATE_HOME to a "
                          "folder you can write to.") from error


def check_host(host: str) -> None:
    """Raise LaunchError for an address that others can reach."""
    if not is_loopback(host):
        raise LaunchError(open_to_others(host))


def check_port(host: str, port: int) -> None:
    """Raise LaunchError if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(f"Port {port} on {host} cannot be used ({error.strerror}); end what uses it, or choose "
                              f"another: palate up --port {port + 1 if port < 65535 else port - 1}.") from error


def _offer_demo(config: Config) -> None:
    database = Database(config)
    try:
        if queue_demo(database, config):
            typer.echo("A demo run is queued: the built-in model learns livelier colours. (`--no-demo` leaves it out.)")
    finally:
        database.dispose()


@dataclass
class _Child:
    """One of the two processes, with its log file and its last lines."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=15))

    def start(self) -> None:
        """Start the process in a session of its own; its output goes to the log, its problems also to the terminal."""
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )
        threading.Thread(target=self._relay, args=(self.process,), daemon=True).start()

    def _relay(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout, self.log.open("a", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                self.last_lines.append(line.rstrip())
                if any(sign in line for sign in _WORTH_SHOWING):
                    typer.echo(f"{self.name}: {line.rstrip()}")

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self.process.poll() if self.process else 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; it looks after its own children."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End its whole session at once."""
        if self.process and self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.process.wait()


class _Household:
    """The worker and the workbench's server, kept alive until told to stop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        logs = config.home / "logs"
        worker, server = ([sys.executable, "-m", module, "--with-parent"] for module in ("workers", "app.server"))
        self._worker = _Child("worker", worker, logs / "worker.log")
        self._server = _Child("workbench", server, logs / "workbench.log")
        self._stops = 0
        self._deaths = 0

    def run(self) -> int:
        """Start, watch, stop; returns the exit code."""
        previous = {number: signal.signal(number, self._on_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._server.start()
            self._worker.start()
            code = self._wait_for_page() or self._watch()
        finally:
            self._stop_all()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return code

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1

    @property
    def address(self) -> str:
        """The page's address."""
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"http://{host}:{self._config.port}"

    def _wait_for_page(self) -> int:
        deadline = time.monotonic() + _START_SECONDS
        while not self._stops and time.monotonic() < deadline and self._server.code is None:
            if _answers(f"{self.address}/_stcore/health"):
                typer.echo(f"Palate is at {self.address}  (Ctrl-C ends it; its data is in {self._config.home})")
                return 0
            time.sleep(0.1)
        if self._stops:
            return 0
        why = f"it ended with code {self._server.code}" if self._server.code is not None else "it does not answer"
        typer.echo(f"The workbench did not start: {why}. The last it said ({self._server.log}):\n"
              + "\n".join(self._server.last_lines), err=True)
        return 1

    def _watch(self) -> int:
        while not self._stops:
            if self._server.code is not None:
                code, log = self._server.code, self._server.log
                typer.echo(f"The workbench ended by itself (code {code}); see {log}.", err=True)
                return 1
            if self._worker.code is not None:
                self._restart_worker()
            time.sleep(0.2)
        return 0

    def _restart_worker(self) -> None:
        """A dead worker is started again; its job waits in the database. After quick deaths in a row, ever slower."""
        code, lived = self._worker.code, time.monotonic() - self._worker.started_at
        self._deaths = self._deaths + 1 if lived < 30 else 1
        last = self._worker.last_lines[-1] if self._worker.last_lines else "none"
        pause = 0 if self._deaths < _QUICK_DEATHS else min(60, 2**self._deaths)
        when = f" in {pause} s" if pause else ""
        typer.echo(f"The worker ended by itself (code {code}) and is started again{when}; runs go on from their "
                   f"checkpoints. Its last words: {last} (all: {self._worker.log})", err=True)
        self._pause(pause)
        if not self._stops:
            self._worker.start()

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stops and time.monotonic() < deadline and self._server.code is None:
            time.sleep(0.2)

    def _stop_all(self) -> None:
        if self._worker.code is None or self._server.code is None:
            typer.echo("\nStopping; a run in training writes its checkpoint first. (Ctrl-C again: at once.)")
        patience = self._stops + 1
        self._worker.signal(signal.SIGTERM)
        self._server.signal(signal.SIGTERM)
        # The server has nothing to save, but open pages may hold it.
        self._wait(lambda: self._server.code is not None, 5.0, patience)
        self._server.kill()
        self._wait(lambda: self._worker.code is not None, self._config.stop_grace_seconds + 30.0, patience)
        self._worker.kill()
        typer.echo("Stopped.")

    def _wait(self, done: Callable[[], bool], seconds: float, patience: int) -> None:
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline and self._stops < patience:
            time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own http address
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False
