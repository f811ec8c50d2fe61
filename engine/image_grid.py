"""One picture of many: a column a prompt, a row a model, with captions (torch-free)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NUM_COLUMNS = 8
TILE_WIDTH = 176
TITLE_WIDTH = 112
GAP = 10
FONT_SIZE = 12
LINE_HEIGHT = 15
MAX_HEADING_LINES = 4
MAX_TITLE_LINES = 8
_INK, _FAINT, _PAPER = (25, 25, 25), (105, 105, 105), (255, 255, 255)


@dataclass(frozen=True)
class GridColumn:
    """A column's heading, and a fainter line under it."""

    heading: str
    note: str


@dataclass(frozen=True)
class GridRow:
    """A row's title at its left, a tile a column (uint8 (H, W, 3), all of one shape), and lines under each tile."""

    title: str
    tiles: Sequence[np.ndarray]
    captions: Sequence[Sequence[str]]


def image_grid(columns: Sequence[GridColumn], rows: Sequence[GridRow]) -> Image.Image:
    """The rows under their columns' headings; past eight columns, the others follow below in the same way."""
    starts = range(0, len(columns), NUM_COLUMNS)
    blocks = [_block(columns[start : start + NUM_COLUMNS], [_from(row, start) for row in rows]) for start in starts]
    # The first block is the widest: only the last may have fewer columns.
    sheet = Image.new("RGB", (blocks[0].width, sum(block.height for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def wrapped(text: str, width: int, max_lines: int) -> list[str]:
    """The text in at most so many lines of at most so many pixels; where some is left out, the last ends in "…"."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font().getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    left_out = len(lines) > max_lines
    lines = lines[:max_lines]
    if left_out:
        lines[-1] += " …"
    return [_shortened(line, width) for line in lines]


def _from(row: GridRow, start: int) -> GridRow:
    end = start + NUM_COLUMNS
    return GridRow(row.title, row.tiles[start:end], row.captions[start:end])


def _block(columns: Sequence[GridColumn], rows: Sequence[GridRow]) -> Image.Image:
    """Up to eight columns with their headings and all rows."""
    headings = [wrapped(column.heading, TILE_WIDTH, MAX_HEADING_LINES) for column in columns]
    num_heading_lines = max(len(lines) for lines in headings) + 1
    num_caption_lines = max(len(lines) for row in rows for lines in row.captions)
    height, width = rows[0].tiles[0].shape[:2]
    tile_height = max(1, round(height * TILE_WIDTH / width))
    row_height = tile_height + num_caption_lines * LINE_HEIGHT + GAP
    top = GAP + num_heading_lines * LINE_HEIGHT + GAP // 2
    block = Image.new("RGB", (_left(len(columns)), top + len(rows) * row_height + GAP), _PAPER)
    pen = ImageDraw.Draw(block)
    for i, (column, lines) in enumerate(zip(columns, headings, strict=True)):
        # Headings stand on their tiles, however many lines they have.
        first = top - GAP // 2 - (len(lines) + 1) * LINE_HEIGHT
        _write(pen, (_left(i), first), lines, _INK)
        _write(pen, (_left(i), first + len(lines) * LINE_HEIGHT), [column.note], _FAINT)
    for j, row in enumerate(rows):
        y = top + j * row_height
        _write(pen, (GAP, y), wrapped(row.title, TITLE_WIDTH - GAP, MAX_TITLE_LINES), _INK)
        for i, (tile, caption) in enumerate(zip(row.tiles, row.captions, strict=True)):
            scaled = Image.fromarray(tile).resize((TILE_WIDTH, tile_height), Image.Resampling.LANCZOS)
            block.paste(scaled, (_left(i), y))
            _write(pen, (_left(i), y + tile_height), [_shortened(line, TILE_WIDTH) for line in caption], _FAINT)
    return block


def _left(column: int) -> int:
    return TITLE_WIDTH + GAP + column * (TILE_WIDTH + GAP)


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], ink: tuple[int, int, int]) -> None:
    for i, line in enumerate(lines):
        pen.text((corner[0], corner[1] + i * LINE_HEIGHT), line, ink, font=_font())


def _shortened(line: str, width: int) -> str:
    """The line if it is no wider than so many pixels, else its beginning and "…"."""
    if _font().getlength(line) <= width:
        return line
    kept = len(line)
    while kept and _font().getlength(line[:kept] + "…") > width:
        kept -= 1
    return line[:kept] + "…"


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
