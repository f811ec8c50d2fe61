"""Benchmarks are scripts: they import one another from their own folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, project_root: Path) -> None:
    monkeypatch.syspath_prepend(str(project_root / "benchmarks"))
