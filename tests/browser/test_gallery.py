"""The gallery in a real browser: lightbox and keys, what a reload keeps, ten thousand tiles, narrow windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update

from engine.events import SampleImage, SamplesDrawn
from engine.settings import EvaluationSettings, RewardSettings, RunSettings
from store import results
from store.config import Config
from store.database import Database
from store.schema import upgrade
from store.tables import Job
from tests.app.seeded_store import Seeder, picture, prompts_for, seed
from tests.browser.conftest import Served, free_port, serve

pytestmark = pytest.mark.browser

STEPS, COLUMNS = 105, 96


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, str]]:
    """A seeded data home, with a run of ten thousand images besides."""
    config = Config(home=tmp_path_factory.mktemp("home"), port=free_port())
    upgrade(config)
    database = Database(config)
    ids = seed(config, database)
    ids["large"] = many_samples(config, database)
    # Nobody may take them from this test: there is a real worker.
    with database.write() as session:
        session.execute(update(Job).where(Job.state == "queued").values(state="cancelled"))
        session.execute(update(Job).where(Job.run_id == ids["large"]).values(state="done"))
    database.dispose()
    return config, ids


def many_samples(config: Config, database: Database) -> str:
    evaluation = EvaluationSettings(num_prompts=COLUMNS)
    settings = RunSettings(evaluation=evaluation, rewards=(RewardSettings(name="vividness"),))
    seeder = Seeder(config, database)
    run_id = seeder.run("Ten thousand images", settings)
    lease = seeder.claim(run_id)
    prompts = prompts_for(COLUMNS)
    picture(config.home / "runs" / run_id / "1" / "one.png", prompts[0], 0.5)
    for step in range(0, STEPS * 10, 10):
        images = tuple(
            SampleImage(index=index, prompt=prompt, seed=index, path="one.png",
                        rewards={"vividness": step / 1000 + index / 100})
            for index, prompt in enumerate(prompts)
        )
        with database.write() as session:
            results.record_samples(session, lease, SamplesDrawn(
                time=1000.0 + step, step=step, images=images, rewards={"vividness": step / 1000}, seconds=1.0))
    return run_id


@pytest.fixture(scope="module")
def served(home: tuple[Config, dict[str, str]]) -> Iterator[Served]:
    with serve(home[0], "--no-demo") as running:
        yield running


def open_run(page: Page, served: Served, run_id: str) -> None:
    page.goto(f"{served.address}/run?id={run_id}")
    expect(page.locator(".gallery .rows .tile").first).to_be_visible()


def test_lightbox_follows_the_arrow_keys(
    page: Page, served: Served, home: tuple[Config, dict[str, str]], screenshots: Path
) -> None:
    open_run(page, served, home[1]["running"])
    page.locator(".gallery .rows .row.newest .tile").nth(2).click()
    foot = page.locator("dialog .foot")
    expect(foot).to_contain_text("Step 60")
    expect(foot).to_contain_text("seed 1002")
    expect(foot).to_contain_text("over step 0")
    page.keyboard.press("ArrowRight")
    expect(foot).to_contain_text("seed 1003")
    page.keyboard.press("ArrowDown")
    expect(foot).to_contain_text("Step 50")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # there is no later step
    expect(foot).to_contain_text("Step 60")
    page.keyboard.press("b")
    expect(page.locator("dialog .stage img")).to_have_count(2)
    page.screenshot(path=screenshots / "lightbox.png")
    page.wait_for_url("**image=60.3*")
    page.reload()
    expect(page.locator("dialog .foot")).to_contain_text("seed 1003")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    page.wait_for_url(lambda url: "image=" not in url)


def test_images_are_loaded_and_scores_switch(
    page: Page, served: Served, home: tuple[Config, dict[str, str]], screenshots: Path
) -> None:
    open_run(page, served, home[1]["running"])
    tile = page.locator(".gallery .rows .tile").first
    tile.scroll_into_view_if_needed()
    image = tile.locator("img").element_handle()
    page.wait_for_function("image => image.complete && image.naturalWidth === 64", arg=image)
    before = tile.locator(".score").inner_text()
    page.get_by_role("button", name="Composition", exact=True).click()
    expect(tile.locator(".score")).not_to_have_text(before)
    page.get_by_role("button", name="Most gained first").click()
    page.screenshot(path=screenshots / "gallery.png")


def test_base_row_stays_in_sight(page: Page, served: Served, home: tuple[Config, dict[str, str]]) -> None:
    open_run(page, served, home[1]["large"])
    view = page.locator(".gallery .view")
    view.scroll_into_view_if_needed()
    view.evaluate("node => { node.scrollTop = 4000; node.scrollLeft = 3000; }")
    expect(page.locator(".gallery .row.base .label .step")).to_be_in_viewport()
    expect(page.locator(".gallery .row.base .label .step")).to_have_text("Step 0")


def test_ten_thousand_tiles_stay_few_in_the_page(
    page: Page, served: Served, home: tuple[Config, dict[str, str]], screenshots: Path
) -> None:
    open_run(page, served, home[1]["large"])
    expect(page.locator(".gallery .count")).to_contain_text(f"{STEPS * COLUMNS:,} images")
    view = page.locator(".gallery .view")
    view.scroll_into_view_if_needed()
    for top in (0, 3000, 9000, 0, 12000):
        view.evaluate("(node, top) => { node.scrollTop = top; }", top)
        page.wait_for_timeout(150)
        assert 20 < page.locator(".gallery .tile").count() < 400
    page.screenshot(path=screenshots / "ten-thousand.png")
    # The last row is the first step after the base model.
    expect(page.locator('.gallery .rows .row[data-step="10"]')).to_be_visible()


@pytest.mark.parametrize("width", [900, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_their_window(
    page: Page, served: Served, home: tuple[Config, dict[str, str]], screenshots: Path, width: int, scheme: str
) -> None:
    ids = home[1]
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    places = {"runs": "", "run": f"run?id={ids['running']}", "failed": f"run?id={ids['failed']}", "new": "new",
              "prompts": f"prompts?set={ids['prompts']}"}
    for name, place in places.items():
        page.goto(f"{served.address}/{place}")
        expect(page.locator('[data-testid="stHeading"]').first).to_be_visible()
        page.wait_for_timeout(2500)
        page.screenshot(path=screenshots / f"{name}-{width}-{scheme}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} overflows"
