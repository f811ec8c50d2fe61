"""A creator's whole way through a real browser: upload, launch, watch, stop, retry, export, download."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import free_port, serve
from tests.installations import fake_engine, make_config

pytestmark = pytest.mark.browser

PROMPTS = "".join(f"a {colour} {shape}\n" for colour in ("red", "blue", "green", "yellow", "pink")
                  for shape in ("circle", "square", "triangle", "star", "ring")) + "a red circle\n"


def set_number(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")


def status_badge(page: Page, words: str) -> Locator:
    """The run's badge; its text begins with the name of an icon."""
    return page.locator(".stMarkdownBadge", has_text=re.compile(rf"{words}$"))


def test_upload_launch_gallery_cancel_export(page: Page, screenshots: Path, tmp_path: Path) -> None:
    engine = fake_engine("--delay", "0.25", "--num-images", "5")
    config = make_config(tmp_path / "home", port=free_port(), engine_command=engine)
    with serve(config, "--no-demo") as served:
        page.goto(served.address)
        expect(page.get_by_text("There are no runs yet")).to_be_visible()
        page.screenshot(path=screenshots / "01-empty.png")

        # Prompts: a refusal, then a set.
        page.get_by_role("link", name="Prompts").click()
        chooser = page.locator('input[type="file"]')
        chooser.set_input_files({"name": "bad.csv", "mimeType": "text/csv", "buffer": b"text\na cat\n"})
        expect(page.get_by_text("no `prompt` column").or_(page.get_by_text("prompt column"))).to_be_visible()
        page.screenshot(path=screenshots / "02-refusal.png")
        page.reload()
        chooser.set_input_files({"name": "scenes.txt", "mimeType": "text/plain", "buffer": PROMPTS.encode()})
        expect(page.get_by_text("25 prompts, 1 duplicate left out")).to_be_visible()
        page.screenshot(path=screenshots / "03-preview.png")
        page.get_by_role("button", name="Keep this set").click()
        expect(page.get_by_text("from scenes.txt")).to_be_visible()
        page.get_by_role("button", name="Use in a run").first.click()

        # A new run on them.
        expect(page.get_by_role("heading", name="New run")).to_be_visible()
        expect(page.get_by_role("combobox", name="Prompts")).to_have_value("scenes · 25 prompts")
        set_number(page, "Iterations", "400")
        set_number(page, "Iterations between samples", "4")
        expect(page.get_by_text("over 101 samplings")).to_be_visible()
        page.reload()
        expect(page.get_by_label("Iterations", exact=True)).to_have_value("400")
        expect(page.get_by_role("combobox", name="Prompts")).to_have_value("scenes · 25 prompts")
        page.screenshot(path=screenshots / "04-new-run.png", full_page=True)
        page.get_by_role("button", name="Start the run").click()

        # Its page comes alive by itself.
        expect(page).to_have_url(re.compile(r"/run\?id=[0-9a-f]{12}"))
        expect(status_badge(page, "Training")).to_be_visible()
        expect(page.locator(".gallery .rows .tile")).not_to_have_count(0)
        expect(page.get_by_text("Iteration").first).to_be_visible()
        page.wait_for_timeout(3000)
        page.screenshot(path=screenshots / "05-running.png", full_page=True)
        address = page.url
        page.reload()
        expect(page.locator(".gallery .rows .tile")).not_to_have_count(0)
        assert page.url == address

        # Stop, and go on.
        page.get_by_role("button", name="Stop").click()
        expect(status_badge(page, "Cancelled")).to_be_visible()
        page.screenshot(path=screenshots / "06-cancelled.png")
        for _ in range(3):  # a click counts at any moment, also while the page is being drawn anew
            page.get_by_role("button", name="Retry").click()
            page.get_by_role("button", name="Stop").click()
            expect(status_badge(page, "Cancelled")).to_be_visible()

        # Take it home.
        page.get_by_role("button", name="Export").click()
        download = page.get_by_role("link", name="Download")
        expect(download).to_be_visible()
        download.scroll_into_view_if_needed()
        page.screenshot(path=screenshots / "07-export.png")
        with page.expect_download() as started:
            download.click()
        assert started.value.suggested_filename == "pytorch_lora_weights.safetensors"
        assert Path(started.value.path()).read_bytes() == b"not really safetensors"

        page.get_by_role("link", name="Runs").click()
        expect(page.get_by_text("1 run", exact=True)).to_be_visible()
        page.screenshot(path=screenshots / "08-runs.png")
