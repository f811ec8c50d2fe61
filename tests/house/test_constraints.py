"""constraints.txt pins everything that pyproject.toml asks for, in a form that any machine can install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[0-9][0-9A-Za-z.]*)")


@pytest.fixture(scope="module")
def pins(project_root: Path) -> dict[str, str]:
    lines = (project_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [(line, PIN.fullmatch(line)) for line in lines if line and not line.startswith("#")]
    assert [line for line, match in matches if match is None] == []
    return {match["name"].lower().replace("_", "-"): match["version"] for _, match in matches if match}


def test_torch_is_the_chosen_one(pins: dict[str, str]) -> None:
    assert pins["torch"] == "2.13.0"


def test_every_requirement_is_pinned(pins: dict[str, str], project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w.-]+", requirement).group().lower() for group in groups for requirement in group}
    assert names - pins.keys() == set()
