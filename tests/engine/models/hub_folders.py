"""The hub's own cache folder, laid out on disk as its library does, holding pipelines of the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_in_cache(cache: Path, hub_id: str, pipeline: Path, *, commit: str = COMMIT, branch: str = "main") -> Path:
    """A copy of a pipeline folder as a download of that commit, which a branch is at; returns the snapshot's folder."""
    repository = cache / ("models--" + hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / commit
    shutil.copytree(pipeline, snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    return snapshot
