"""docker/: the compose files parse, name settings and paths that exist, and publish nothing to the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from store.config import Config

DOCKER = Path(__file__).parent.parent.parent / "docker"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]


def test_every_part_is_there(services: dict[str, Any]) -> None:
    assert services.keys() == {"postgres", "redis", "migrate", "worker", "workbench"}


def test_settings_exist(services: dict[str, Any]) -> None:
    known = {f"PALATE_{name.upper()}" for name in Config.model_fields}
    named = {name for service in services.values() for name in service.get("environment", {}) if "PALATE" in name}
    assert named
    assert named - known == set()


def test_nothing_is_published_to_the_network(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8501:8501"]


def test_dependencies_are_services_that_can_meet_them(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, need in service.get("depends_on", {}).items():
            assert need["condition"] != "service_healthy" or "healthcheck" in services[name]
            assert need["condition"] != "service_completed_successfully" or services[name]["restart"] == "no"


def test_the_gpu_file_only_adds_to_services_that_exist(services: dict[str, Any]) -> None:
    added = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text(encoding="utf-8"))["services"]
    assert added.keys() <= services.keys()


@pytest.mark.parametrize("name", ["worker", "workbench"])
def test_modules_exist(name: str, services: dict[str, Any]) -> None:
    module = services[name]["command"][2]
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    subprocess.run([sys.executable, "-c", program], cwd=DOCKER.parent, check=True, timeout=60)


def test_migration_command_works(services: dict[str, Any], own_home: None) -> None:
    command = [sys.executable, *services["migrate"]["command"][1:]]
    subprocess.run(command, cwd=DOCKER.parent, check=True, timeout=120)


def test_torch_is_the_pinned_one() -> None:
    root = DOCKER.parent
    pinned = re.search(r"^torch==(\S+)$", (root / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r'"torch==([\d.]+)(?:\+cpu)?"', (DOCKER / "Dockerfile").read_text(encoding="utf-8"))
    assert pinned is not None
    assert set(named) == {pinned[1]}


def test_what_is_private_stays_out_of_the_image() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv", ".palate"} <= set(ignored)
