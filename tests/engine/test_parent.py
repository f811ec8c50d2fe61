"""A process ends with its parent, also where that has died before it could ask."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine.parent import told_to_children

GOES_ON = "from engine.parent import end_with_parent; end_with_parent(); print('on')"


@pytest.mark.parametrize("told", [told_to_children(), {}], ids=["told its parent", "told nothing"])
def test_it_goes_on_under_a_living_parent(told: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GOES_ON], env=os.environ | told, capture_output=True, text=True, check=True
    )
    assert done.stdout == "on\n"


def test_it_ends_where_its_parent_died_while_it_started() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    told = dict.fromkeys(told_to_children(), str(gone.pid))
    done = subprocess.run(
        [sys.executable, "-c", GOES_ON], env=os.environ | told, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
