"""Finds the browser that the browser tests drive, and installs one where there is none.

`make test` runs it with ``--install``; the tests import `find_browser`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NOT_FOUND = (
    "The browser tests need Chromium or Chrome and found neither. Install one (Debian: apt install chromium), or name "
    "it: PALATE_BROWSER=/path/to/chrome make test"
)


def find_browser() -> str | None:
    """The path of a Chromium or Chrome: PALATE_BROWSER, one on PATH, or playwright's own; None if there is none."""
    if named := os.environ.get("PALATE_BROWSER"):
        return named if Path(named).is_file() else None
    on_path = (shutil.which(name) for name in NAMES)
    return next((path for path in on_path if path), None) or _playwright_browser()


def _playwright_browser() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def install_browser() -> None:
    """Installs Chromium: Debian's package where that is possible, else playwright's build."""
    if platform.system() == "Linux" and shutil.which("apt-get") and os.geteuid() == 0:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False, env=environment, stdin=subprocess.DEVNULL)
        packages = ["chromium", "fonts-dejavu-core"]
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL)
    if find_browser() is None:
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, check=False, stdin=subprocess.DEVNULL)


def main() -> int:
    """Prints the browser's path; 1 and a sentence if there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="install a browser if none is found")
    arguments = parser.parse_args()
    if find_browser() is None and arguments.install:
        print("No browser found for the browser tests; installing Chromium.", flush=True)
        install_browser()
    path = find_browser()
    print(f"Browser for the tests: {path}" if path else NOT_FOUND, file=sys.stdout if path else sys.stderr, flush=True)
    return 0 if path else 1


if __name__ == "__main__":
    raise SystemExit(main())
