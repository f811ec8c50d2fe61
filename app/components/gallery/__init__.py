"""The gallery: a row a sampled step, a column a prompt, step 0 pinned on top, a lightbox with arrow keys.

Python sends file addresses and scores; `gallery.js` draws only the tiles in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ShownReward:
    """A reward that tiles can bear: its name in the data, its title, and the digits after the point."""

    name: str
    title: str
    digits: int


@dataclass(frozen=True)
class Tile:
    """One image: its address below the gallery's `url`, and its scores in the order of the gallery's rewards."""

    file: str
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class GalleryRow:
    """The images of one sampled step, one place a prompt; None where an image is missing."""

    step: int
    tiles: tuple[Tile | None, ...]


@dataclass(frozen=True)
class GalleryData:
    """All a gallery shows. `rows` rise by step; `prompts` and `seeds` name the columns."""

    run: str
    url: str
    rewards: tuple[ShownReward, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[GalleryRow, ...]

    def for_browser(self, selected: str | None) -> dict[str, Any]:
        """Plain data for gallery.js, with scores to four digits so that a large gallery stays small."""
        return {
            "run": self.run,
            "url": self.url,
            "rewards": [asdict(reward) for reward in self.rewards],
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "steps": [{"step": row.step, "tiles": [_plain(tile) for tile in row.tiles]} for row in self.rows],
            "selected": selected,
        }


def _plain(tile: Tile | None) -> list[Any] | None:
    if tile is None:
        return None
    return [tile.file, [None if score is None else round(score, 4) for score in tile.scores]]


@cache
def _mount() -> Callable[..., Any]:
    """Register the component once a process; Streamlit warns about a second registration."""
    html, css, js = ((_HERE / f"gallery.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js"))
    return st.components.v2.component("palate_gallery", html=html, css=css, js=js)


def gallery(data: GalleryData, *, key: str, selected: str | None, on_select: Callable[[], None]) -> str | None:
    """Draw the gallery and return the image open in its lightbox as "step.column", or None.

    `selected` opens that image when the gallery first appears; `on_select` is called when another is opened or closed.
    """
    result = _mount()(key=key, data=data.for_browser(selected), on_selected_change=on_select)
    value = result.get("selected")
    return value or None


def column_order(names: Sequence[str], trained: Sequence[str]) -> list[str]:
    """Rewards that are trained on first, in the order the creator gave, then the merely measured ones by name."""
    return [name for name in trained if name in names] + sorted(set(names) - set(trained))
