"""A real browser on a real workbench; screenshots go to PALATE_SCREENSHOTS, or to the test's own folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from store.config import Config
from tests.find_browser import NOT_FOUND, find_browser
from tests.installations import environment_of

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@dataclass(frozen=True)
class Served:
    """A running workbench."""

    address: str
    config: Config


@contextmanager
def serve(config: Config, *arguments: str) -> Iterator[Served]:
    """`palate up` on a data home, until the block ends."""
    command = [sys.executable, "-m", "app.cli", "up", *arguments]
    with subprocess.Popen(command, env=environment_of(config), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if "Palate is at" in line:
                    break
            assert said and "Palate is at" in said[-1], said
            yield Served(f"http://127.0.0.1:{config.port}", config)
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# A machine that also trains may take its time.
expect.set_options(timeout=180_000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(NOT_FOUND)
        pytest.skip(NOT_FOUND)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test on a script error, or on a request to any other machine."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(180_000)
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: wrong.append(request.url) if not is_local(request.url) else None)
    yield opened
    context.close()
    assert wrong == []


def is_local(url: str) -> bool:
    return re.match(r"(https?|ws)://127\.0\.0\.1[:/]|data:|blob:|about:", url) is not None


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PALATE_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
