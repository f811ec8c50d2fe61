"""The exact checker: it says whether a picture shows what its caption asks for.

The picture is split into background and objects, each object is measured (colour, best-fitting shape, radius, centre),
and the demanded objects are assigned to the measured ones. Every asked attribute gets a smooth value in 0..1, which is
what a reward needs, and a hard verdict, which is what a gate needs. One image takes about 2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.builtin.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    ObjectSpec,
    SceneSpec,
    parse_caption,
    signed_distance,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST_AREA = 40.0  # pixels; anything smaller is a speck, not an object
SIZE_BORDER = 12.15  # pixels of radius between small and large

_CONTRAST = 34.0  # distance in RGB (0..255) from the background at which an object begins
_COLOUR_REACH = 75.0  # distance in RGB from the demanded colour that still passes for it
_LEAST_OVERLAP = 0.8  # share of its template that a shape must match; an oblong of 4:3 misses it as a square
_MOST_OBJECTS = 5
_PALETTE = np.asarray(list(COLOURS.values()), dtype=np.float64)
_COLOUR_NAMES = list(COLOURS)
_BACKGROUND_PALETTE = np.asarray(list(BACKGROUNDS.values()), dtype=np.float64)
_BACKGROUND_NAMES = list(BACKGROUNDS)


@dataclass(frozen=True)
class CheckResult:
    """Partial credit of each attribute in 0..1, None where not asked; `score` is their product.

    `right` names the attributes that are exactly right; `correct` says that all are.
    """

    background: float | None
    colour: float | None
    shape: float | None
    count: float | None
    size: float | None
    relation: float | None
    score: float
    correct: bool
    right: frozenset[str]

    @property
    def asked(self) -> tuple[str, ...]:
        """The attributes that the prompt asks for."""
        return tuple(name for name in ATTRIBUTES if getattr(self, name) is not None)


ATTRIBUTES: tuple[str, ...] = ("background", "colour", "shape", "count", "size", "relation")


@dataclass(frozen=True)
class _Found:
    """One object of a picture: colour (3,), area, centroid, and each template's overlap and radius."""

    colour: Floats
    area: float
    x: float
    y: float
    overlaps: Floats
    radii: Floats


def check(image: NDArray[np.uint8], prompt: str) -> CheckResult:
    """Compare a picture, uint8 (H, W, 3), with a caption; ValueError where that is outside the grammar."""
    spec = parse_caption(prompt)
    if spec is None:
        raise ValueError(f"The built-in model's grammar does not know the sentence {prompt!r}.")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"An image of shape (height, width, 3) is needed, not {image.shape}.")
    if image.shape[:2] != (SIDE, SIDE):
        image = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))
    background, found, num_effective = _take_apart(image.astype(np.float64))
    values: dict[str, float] = {}
    verdicts: dict[str, bool] = {}
    if spec.background is not None:
        values["background"], verdicts["background"] = _background(background, spec.background)
    chosen = _assign(spec, found)
    values["colour"], verdicts["colour"] = _mean([_colour(one, item) for one, item in chosen])
    values["shape"], verdicts["shape"] = _mean([_shape(one, item) for one, item in chosen])
    values["count"] = float(np.exp(-1.2 * abs(num_effective - spec.count)))
    verdicts["count"] = len(found) == spec.count
    sized = [(one, item) for one, item in chosen if one.size is not None]
    if sized:
        values["size"], verdicts["size"] = _mean([_size(one, item) for one, item in sized])
    if spec.relation is not None:
        values["relation"], verdicts["relation"] = _relation(spec.relation, chosen[0][1], chosen[1][1])
    score = float(np.prod(list(values.values())))
    right = frozenset(name for name, verdict in verdicts.items() if verdict)
    filled = {name: values.get(name) for name in ATTRIBUTES}
    return CheckResult(**filled, score=score, correct=all(verdicts.values()), right=right)


def _take_apart(pixels: Floats) -> tuple[Floats, list[_Found], float]:
    """Background colour (3,), the objects by falling area, and how many objects there are when specks count in part."""
    ring = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    background = np.median(ring, axis=0)
    mask = ((pixels - background) ** 2).sum(-1) > _CONTRAST**2
    labels, num_labels = _label(mask)
    parts: list[Mask] = []
    num_effective = 0.0
    for label in range(1, num_labels + 1):
        part = labels == label
        if part.sum() < 6:
            continue
        pieces = _split_by_colour(pixels, part)
        num_effective += sum(min(1.0, float(piece.sum()) / 60.0) for piece in pieces)
        parts += [piece for piece in pieces if piece.sum() >= LEAST_AREA]
    parts.sort(key=lambda part: -int(part.sum()))
    return background, [_measure(pixels, background, part, mask) for part in parts[:_MOST_OBJECTS]], num_effective


def _label(mask: Mask) -> tuple[NDArray[np.int64], int]:
    """Number the connected parts (four neighbours) of a mask from 1: runs along rows, joined from row to row."""
    height, width = mask.shape
    padded = np.zeros((height, width + 1), dtype=np.int8)
    padded[:, :width] = mask
    steps = np.diff(padded.ravel(), prepend=0)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    parent = list(range(len(starts)))

    def root(run: int) -> int:
        while parent[run] != run:
            run = parent[run]
        return run

    rows, left, right = starts // (width + 1), starts % (width + 1), ends - (starts // (width + 1)) * (width + 1)
    above = np.searchsorted(rows, np.arange(height + 1))
    for run, (row, begin, end) in enumerate(zip(rows.tolist(), left.tolist(), right.tolist(), strict=True)):
        for other in range(above[row - 1] if row else 0, above[row]):
            if left[other] < end and right[other] > begin:
                low, high = sorted((root(other), root(run)))
                parent[high] = low
    roots = [root(run) for run in range(len(parent))]
    numbers = {one: number for number, one in enumerate(sorted(set(roots)), start=1)}
    labels = np.zeros(mask.shape, dtype=np.int64)
    for run, (row, begin, end) in enumerate(zip(rows.tolist(), left.tolist(), right.tolist(), strict=True)):
        labels[row, begin:end] = numbers[roots[run]]
    return labels, len(numbers)


def _interior(part: Mask) -> Mask:
    """The pixels of a part whose four neighbours belong to it too; the part itself where there are none."""
    inner = part.copy()
    inner[1:] &= part[:-1]
    inner[:-1] &= part[1:]
    inner[:, 1:] &= part[:, :-1]
    inner[:, :-1] &= part[:, 1:]
    return inner if inner.any() else part


def _split_by_colour(pixels: Floats, part: Mask) -> list[Mask]:
    """Objects of different colours that touch are told apart where each has a fair share of the inside."""
    inner = _interior(part)
    nearest = _distances(pixels[inner], _PALETTE).argmin(-1)
    counts = np.bincount(nearest, minlength=len(_PALETTE))
    present = np.flatnonzero(counts >= max(25.0, 0.2 * len(nearest)))
    if len(present) < 2:
        return [part]
    chosen = np.full(part.shape, -1)
    chosen[part] = present[_distances(pixels[part], _PALETTE[present]).argmin(-1)]
    return [chosen == colour for colour in present]


def _measure(pixels: Floats, background: Floats, part: Mask, mask: Mask) -> _Found:
    """Measure one object by its soft coverage, which counts the pixels on its edge in part."""
    colour = np.median(pixels[_interior(part)], axis=0)
    wide = part.copy()
    wide[1:] |= part[:-1]
    wide[:-1] |= part[1:]
    wide[:, 1:] |= part[:, :-1]
    wide[:, :-1] |= part[:, 1:]
    wide &= part | ~mask
    contrast = colour - background
    cover = np.clip((pixels - background) @ contrast / max(float(contrast @ contrast), 1.0), 0.0, 1.0) * wide
    rows, columns = np.flatnonzero(wide.any(1)), np.flatnonzero(wide.any(0))
    y_0, y_1 = max(rows[0] - 4, 0), min(rows[-1] + 5, SIDE)
    x_0, x_1 = max(columns[0] - 4, 0), min(columns[-1] + 5, SIDE)
    window = cover[y_0:y_1, x_0:x_1]
    grid_y, grid_x = np.arange(y_0, y_1)[:, None] + 0.5, np.arange(x_0, x_1)[None, :] + 0.5
    area = float(window.sum())
    x, y = float((window * grid_x).sum() / area), float((window * grid_y).sum() / area)
    overlaps, radii = np.zeros(len(SHAPES)), np.zeros(len(SHAPES))
    for index, shape in enumerate(SHAPES):
        unit_area, drop = _template(shape)
        radius = (area / unit_area) ** 0.5
        inside = signed_distance(shape, (grid_x - x) / radius, (grid_y - y) / radius + drop)
        ideal = np.clip(inside * radius + 0.5, 0.0, 1.0)
        overlaps[index] = np.minimum(window, ideal).sum() / max(float(np.maximum(window, ideal).sum()), 1e-6)
        radii[index] = radius
    return _Found(colour, area, x, y, overlaps, radii)


@cache
def _template(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far its centroid lies below the centre of its box."""
    line = (np.arange(600) + 0.5) / 250 - 1.2
    x, y = np.meshgrid(line, line)
    inside = signed_distance(shape, x, y) > 0
    return float(inside.sum()) / 250**2, float(y[inside].mean())


def _assign(spec: SceneSpec, found: list[_Found]) -> list[tuple[ObjectSpec, _Found | None]]:
    """Give each demanded object the measured object that suits it, for the best total; None where too few."""
    slots: list[_Found | None] = [*found, *[None] * max(0, spec.count - len(found))]
    fit = [[2 * _colour(one, item)[0] + _shape(one, item)[0] for item in slots] for one in spec.objects]
    best = max(
        permutations(range(len(slots)), spec.count),
        key=lambda order: sum(fit[row][column] for row, column in enumerate(order)),
    )
    return [(one, slots[column]) for one, column in zip(spec.objects, best, strict=True)]


def _background(colour: Floats, name: str) -> tuple[float, bool]:
    """How clearly the background is the demanded one rather than any other."""
    return _nearest(colour, _BACKGROUND_PALETTE, _BACKGROUND_NAMES.index(name), softness=10.0)


def _colour(one: ObjectSpec, item: _Found | None) -> tuple[float, bool]:
    """How clearly an object has the demanded colour rather than any other."""
    if item is None:
        return 0.0, False
    return _nearest(item.colour, _PALETTE, _COLOUR_NAMES.index(one.colour), softness=18.0)


def _nearest(colour: Floats, palette: Floats, index: int, softness: float) -> tuple[float, bool]:
    """Sigmoid of the margin by which a palette's colour is the nearest; `softness` in RGB distance (0..255)."""
    distances = _distances(colour, palette)
    margin = float(np.delete(distances, index).min() - distances[index])
    return _sigmoid(margin / softness), margin > 0 and float(distances[index]) < _COLOUR_REACH


def _shape(one: ObjectSpec, item: _Found | None) -> tuple[float, bool]:
    """How well an object fills the demanded template, and how much better than the template of any other shape."""
    if item is None:
        return 0.0, False
    index = SHAPES.index(one.shape)
    overlap = float(item.overlaps[index])
    margin = overlap - float(np.delete(item.overlaps, index).max())
    return 0.75 * _sigmoid(margin / 0.05) + 0.25 * overlap, margin > 0 and overlap >= _LEAST_OVERLAP


def _size(one: ObjectSpec, item: _Found | None) -> tuple[float, bool]:
    """On which side of the border between small and large the radius of the best-fitting template lies."""
    if item is None:
        return 0.0, False
    beyond = float(item.radii[int(item.overlaps.argmax())]) - SIZE_BORDER
    beyond = beyond if one.size == "large" else -beyond
    return _sigmoid(beyond / 0.7), beyond > 0


def _relation(relation: str, first: _Found | None, second: _Found | None) -> tuple[float, bool]:
    """How far the first object lies towards the demanded side of the second, in pixels, against the drift across."""
    if first is None or second is None:
        return 0.0, False
    right, down = first.x - second.x, first.y - second.y
    along = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
    across = abs(down if relation in ("left of", "right of") else right)
    return _sigmoid((along - 0.5 * across - 2.0) / 5.0), along > 6.0 and along > 0.7 * across


def _distances(colours: Floats, palette: Floats) -> Floats:
    """Distances in RGB from colours (..., 3) to a palette (P, 3): (..., P)."""
    distances: Floats = np.sqrt(((colours[..., None, :] - palette) ** 2).sum(-1))
    return distances


def _mean(graded: list[tuple[float, bool]]) -> tuple[float, bool]:
    """Mean of the values, and whether all verdicts hold."""
    return float(np.mean([value for value, _ in graded])), all(verdict for _, verdict in graded)


def _sigmoid(value: float) -> float:
    """The logistic function, safe for large arguments."""
    return float(0.5 * (1.0 + np.tanh(0.5 * value)))
