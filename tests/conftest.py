"""What every test stands on: no settings of the person who runs it, no network, the same examples each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Some imports read these once, so they are set before any test module is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] = "false"

settings.register_profile("palate", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("palate")

NOT_SETTINGS = {"PALATE_BROWSER", "PALATE_SCREENSHOTS"}


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps a test away from the runs and settings of the person who runs it: PALATE_HOME is an empty folder."""
    for name in [name for name in os.environ if name.startswith("PALATE_") and name not in NOT_SETTINGS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PALATE_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).parent.parent
