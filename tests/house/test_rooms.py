"""The rules of the house that no linter knows: small files, plain names, declared dependencies, no hidden torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOMS = ("app", "engine", "store", "workers", "migrations", "benchmarks", "docs", "tests")
RUNTIME_ROOMS = ("app", "engine", "store", "workers", "migrations")
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_LINES = 400


def python_files(root: Path, rooms: tuple[str, ...] = ROOMS) -> Iterator[Path]:
    for room in rooms:
        yield from sorted((root / room).rglob("*.py"))


def test_files_are_small(project_root: Path) -> None:
    long = {
        str(path.relative_to(project_root)): num_lines
        for path in python_files(project_root)
        if (num_lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}


def test_names_say_what_is_inside(project_root: Path) -> None:
    banned = [path for path in python_files(project_root) if {path.stem, path.parent.name} & BANNED_NAMES]
    assert banned == []


def test_app_shadows_no_module(project_root: Path) -> None:
    """`streamlit run app/main.py` puts app/ first on sys.path, so app/signal.py would hide the standard library's."""
    names = {path.stem for path in (project_root / "app").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & (set(sys.stdlib_module_names) | set(ROOMS)) == set()


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_imports_are_declared(project_root: Path) -> None:
    """A package that only comes along with another may be gone in the other's next version."""
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ("postgres", "redis", "rewards", "quantisation")
    requirements = [*project["dependencies"], *(name for extra in extras for name in
                                                project["optional-dependencies"][extra])]
    declared = {normalised(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}
    distributions = packages_distributions()
    undeclared = {
        (str(path.relative_to(project_root)), name)
        for path in python_files(project_root, RUNTIME_ROOMS)
        for name in imported_names(path)
        if name not in sys.stdlib_module_names and name not in ROOMS
        and not {normalised(distribution) for distribution in distributions.get(name, [name])} & declared
    }
    assert undeclared == set()


@pytest.mark.parametrize("module", ["app.cli", "workers", "store", "engine.settings", "engine.presets"])
def test_starts_without_torch(module: str, project_root: Path) -> None:
    """Imports made while running count too, which the import contracts cannot see."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=project_root, check=True, timeout=60)
