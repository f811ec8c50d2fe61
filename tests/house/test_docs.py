"""The documents say what is true: their commands, paths and links exist, and the written pages are current."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from engine.catalogue import MODEL_INFO, REWARD_INFO
from engine.presets import PRESETS

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docker").rglob("*.md")]
)
ROOMS = ("app", "engine", "store", "workers", "migrations", "benchmarks", "docs", "docker", "tests", ".ci")
# A word in backticks that begins with a room and a slash is a path of this project: `engine/sampling/sde.py`.
PATH = re.compile(rf"`((?:{'|'.join(re.escape(room) for room in ROOMS)})/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
# A test as pytest names it: `tests/house/test_docs.py::test_paths_exist`.
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
COMMAND_LINE = re.compile(r"(?:^|`|bin/)(make|palate) ([a-z][a-z-]*)", re.MULTILINE)


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_paths_exist(page: Path) -> None:
    paths = PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_tests_exist(page: Path) -> None:
    named = TEST.findall(page.read_text(encoding="utf-8"))
    assert [(path, name) for path, name in named if f"def {name}(" not in (ROOT / path).read_text("utf-8")] == []


def test_every_known_fault_has_its_proofs() -> None:
    """docs/proofs.md says which tests hold the eight faults of the published code; each of its rows names some."""
    text = (ROOT / "docs" / "proofs.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and " --- " not in line]
    bare = [row for row in rows if not TEST.search(row) and not row.endswith("| test |")]
    assert bare == []
    assert re.findall(r"^\| (\d)\. ", text, re.MULTILINE) == [str(fault) for fault in range(1, 9)]


def test_commands_exist(page: Path) -> None:
    from app.cli import app

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = {"make": targets, "palate": set(typer.main.get_command(app).commands)}
    named = COMMAND_LINE.findall(page.read_text(encoding="utf-8"))
    assert [(program, name) for program, name in named if name not in commands[program]] == []


def test_presets_exist(page: Path) -> None:
    named = re.findall(r"palate presets ([a-z_]+) ", page.read_text(encoding="utf-8"))
    assert set(named) - PRESETS.keys() == set()


def test_guide_has_every_reward() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "guides" / "rewards.md").read_text(encoding="utf-8"), re.M)
    assert set(rows) == REWARD_INFO.keys()


def test_table_has_every_model() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), re.M)
    assert set(rows) == MODEL_INFO.keys()


@pytest.mark.parametrize(("script", "name"), [
    ("make_settings_reference", "docs/guides/settings.md"),
    ("make_models_table", "docs/models.md"),
])  # fmt: skip
def test_written_pages_are_current(script: str, name: str) -> None:
    program = f"import {script} as m, sys; sys.exit(m.page() != m.PAGE.read_text(encoding='utf-8'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "docs", timeout=120, check=False)
    assert done.returncode == 0, f"{name} is out of date; run `make docs`."


def test_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_decision_is_listed() -> None:
    """docs/decisions/README.md is how a reader finds them."""
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in folder.glob("[0-9]*.md") if path.name not in index] == []
