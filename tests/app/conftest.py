"""A seeded workbench: made once, copied for each test, so that a test may change it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import streamlit as st

from store.config import Config, load_config
from store.database import Database
from store.schema import upgrade
from tests.app.seeded_store import seed


@dataclass(frozen=True)
class Workbench:
    """A data home with a run in each state; `ids` names them by state."""

    config: Config
    database: Database
    ids: dict[str, str]


@pytest.fixture(scope="session")
def seeded_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    home = tmp_path_factory.mktemp("seeded")
    config = Config(home=home)
    upgrade(config)
    database = Database(config)
    ids = seed(config, database)
    database.dispose()
    return home, ids


def open_workbench(home: Path, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    monkeypatch.setenv("PALATE_HOME", str(home))
    st.cache_resource.clear()
    st.cache_data.clear()
    config = load_config()
    upgrade(config)
    database = Database(config)
    yield Workbench(config, database, ids)
    database.dispose()
    # The pages' own pool: it must not outlive the folder.
    from app.connection import database as pages_database

    pages_database().dispose()
    st.cache_resource.clear()


@pytest.fixture
def workbench(
    tmp_path: Path, seeded_home: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workbench]:
    home, ids = seeded_home
    shutil.copytree(home, tmp_path / "home")
    yield from open_workbench(tmp_path / "home", ids, monkeypatch)


@pytest.fixture
def empty_workbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    yield from open_workbench(tmp_path / "home", {}, monkeypatch)
