"""Starts the ranks of a run, a process each, on this machine; ends them together (torch's elastic launcher).

A request to stop is passed on to every rank. When one rank fails, the others, which would wait for it for ever, are
ended too; what it said goes to stderr, and the exit code is its. The ranks meet on the loopback interface: nothing
listens to the network.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public, and not in __all__
from torch.distributed.elastic.multiprocessing import PContext, start_processes
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from engine.parent import told_to_children
from engine.ranks import uses_gpus
from engine.settings import ComputeSettings

MISTAKE, FAULT = 2, 1
_POLL_SECONDS = 0.1
_LOOPBACK = "127.0.0.1"
# Whatever torch's launcher takes over while it starts processes.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def launch(command: Sequence[str], num_processes: int, logs: Path) -> int:
    """Run a command once for each rank, and return the exit code: 0, MISTAKE or FAULT.

    The stderr of each rank goes to a file in `logs`; that of the rank that failed first also to our own, at the end.
    """
    logs.mkdir(parents=True, exist_ok=True)
    # It would name processes and signals; the rank's own words are enough.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    listening = socket.create_server((_LOOPBACK, 0))
    port = listening.getsockname()[1]
    store = TCPStore(_LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    with _signals_kept():
        context = start_processes(
            name="rank",
            entrypoint=command[0],
            args=dict.fromkeys(range(num_processes), tuple(command[1:])),
            envs={rank: _environment(rank, num_processes, port) for rank in range(num_processes)},
            logs_specs=_RankLogs(logs),
        )
        _pass_on_stops(context)
        result = context.wait(period=_POLL_SECONDS)
    del store  # the ranks have met in it until here
    assert result is not None, "there is no time limit"
    if not result.is_failed():
        return 0
    return _report(result.failures, result.stderrs)


def check_devices(compute: ComputeSettings) -> None:
    """Raise ValueError if there are fewer GPUs than processes to use them."""
    num_gpus = torch.cuda.device_count()
    if uses_gpus(compute) and num_gpus < compute.num_processes:
        raise ValueError(
            f"compute.num_processes is {compute.num_processes}, but each needs a GPU of its own, and torch sees only "
            f"{num_gpus} here; use as many processes as there are GPUs."
        )


def _environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    """What torch.distributed reads in a rank; the same as torchrun sets."""
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "palate",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    } | told_to_children()
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment[name] = os.environ.get(name, "lo")
    return environment


class _RankLogs(LogsSpecs):
    """The stderr of rank N goes to `N.log`, stdout to the launcher's."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        return LogsDest(
            stdouts=dict.fromkeys(envs, ""),
            stderrs={rank: str(self.folder / f"{rank}.log") for rank in envs},
            error_files=dict.fromkeys(envs, ""),
        )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Signals are handled after the block as they were before it."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on_stops(context: PContext) -> None:
    """SIGTERM and SIGINT ask every rank for a checkpoint and an end; torch's own handlers would not wait for it."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in context.pids().values():
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:  # it has just ended
                continue

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)


def _report(failures: dict[int, ProcessFailure], logs: dict[int, str]) -> int:
    """Say why the run failed, in the words of the rank that failed first; the exit code."""

    def order(failure: ProcessFailure) -> tuple[bool, bool, int, float]:
        ended_by_us = failure.exitcode == -signal.SIGTERM
        # A rank that loses another fails too, with words about its connection; it speaks later.
        spoke = Path(logs[failure.local_rank]).stat().st_mtime
        return failure.exitcode != MISTAKE, ended_by_us, failure.timestamp, spoke

    first = min(failures.values(), key=order)
    sys.stderr.write(Path(logs[first.local_rank]).read_text(encoding="utf-8", errors="replace"))
    if first.exitcode < 0:
        hint = "; the machine may have run out of memory" if first.exitcode == -signal.SIGKILL else ""
        sys.stderr.write(f"Process {first.local_rank + 1} of the run was ended by {first.signal_name()}{hint}.\n")
    sys.stderr.flush()
    return MISTAKE if first.exitcode == MISTAKE else FAULT
