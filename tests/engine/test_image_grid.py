"""The grid: every tile in its place, captions that fit."""

from __future__ import annotations

import numpy as np
import pytest

from engine.image_grid import (
    GAP,
    NUM_COLUMNS,
    TILE_WIDTH,
    TITLE_WIDTH,
    GridColumn,
    GridRow,
    _font,
    image_grid,
    wrapped,
)

COLOURS = [(200, 30 + 20 * i, 250 - 20 * i) for i in range(10)]


def flat(colour: tuple[int, int, int], height: int = 64) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (height, 64, 3)).copy()


def row(title: str, count: int, height: int = 64, dimmed: int = 1) -> GridRow:
    tiles = [flat(tuple(value // dimmed for value in colour), height) for colour in COLOURS[:count]]
    return GridRow(title, tiles, [["vividness 0.50"]] * count)


def columns(count: int) -> list[GridColumn]:
    return [GridColumn(f"prompt {i}", f"seed {i}") for i in range(count)]


def boxes_of(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of a colour."""
    ys, xs = np.nonzero((sheet == np.array(colour, dtype=np.uint8)).all(-1))
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_a_row_a_model_and_a_column_a_prompt() -> None:
    sheet = np.asarray(image_grid(columns(3), [row("tuned", 3), row("base", 3, dimmed=2)]))
    for i, colour in enumerate(COLOURS[:3]):
        above, below = boxes_of(sheet, colour), boxes_of(sheet, tuple(value // 2 for value in colour))
        left = TITLE_WIDTH + GAP + i * (TILE_WIDTH + GAP)
        assert (above[0], above[2]) == (below[0], below[2]) == (left, left + TILE_WIDTH)
        assert above[3] - above[1] == below[3] - below[1] == TILE_WIDTH
        assert above[3] < below[1]


def test_more_prompts_than_columns_go_on_below() -> None:
    count = NUM_COLUMNS + 2
    sheet = np.asarray(image_grid(columns(count), [row("tuned", count)]))
    first, ninth = boxes_of(sheet, COLOURS[0]), boxes_of(sheet, COLOURS[NUM_COLUMNS])
    assert first[0] == ninth[0]
    assert first[3] < ninth[1]
    assert sheet.shape[1] == TITLE_WIDTH + GAP + NUM_COLUMNS * (TILE_WIDTH + GAP)


def test_tiles_keep_their_proportions() -> None:
    box = boxes_of(np.asarray(image_grid(columns(1), [row("tuned", 1, height=32)])), COLOURS[0])
    assert (box[2] - box[0], box[3] - box[1]) == (TILE_WIDTH, TILE_WIDTH // 2)


@pytest.mark.parametrize("text", ["a " * 200, "x" * 500, "赤い円 " * 40, "one two", ""])
def test_wrapped_lines_fit(text: str) -> None:
    lines = wrapped(text, TILE_WIDTH, 4)
    assert len(lines) <= 4
    assert all(_font().getlength(line) <= TILE_WIDTH for line in lines)
    whole = " ".join(lines) == " ".join(text.split())
    assert whole != (bool(lines) and lines[-1].endswith("…"))
