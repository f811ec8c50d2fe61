"""A process that ends with the one that started it, so that no orphan trains on (torch-free)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PARENT = "PALATE_PARENT_PROCESS"


def told_to_children() -> dict[str, str]:
    """What the environment of a process that is to end with this one needs."""
    return {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies; raises SystemExit if it is dead already.

    A parent may die while its child still imports torch. Who was told its number notices; others take who adopted them
    for their parent.
    """
    if sys.platform != "linux":
        return
    parent = int(os.environ.pop(_PARENT, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
