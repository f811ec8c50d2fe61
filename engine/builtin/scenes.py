"""Captioned scenes of flat coloured shapes, 64×64: what is drawn, how it is drawn, and how it is said.

A scene has one object, two different objects in a relation, or two or three equal objects. Positions and radii are in
pixels; x runs to the right and y downwards. `caption` says a scene in one of many ways, `parse_caption` reads such a
sentence back as the `SceneSpec` it demands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 58, 58),
    "orange": (243, 138, 36),
    "yellow": (248, 208, 62),
    "green": (62, 158, 84),
    "cyan": (72, 196, 208),
    "blue": (48, 104, 208),
    "purple": (130, 76, 180),
    "pink": (242, 136, 182),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (247, 245, 240),
    "grey": (190, 196, 205),
    "beige": (229, 211, 180),
    "black": (36, 38, 48),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
RADII: dict[str, tuple[float, float]] = {"small": (9.6, 10.4), "large": (13.9, 14.6)}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE: dict[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
PLURALS: dict[str, str] = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
NUMBERS: dict[str, int] = {"two": 2, "three": 3}
MAX_WORDS = 15

_MARGIN = 2.0  # pixels between an object and the edge
_GAP = 2.0  # least pixels between two objects
_ROWS, _COLUMNS = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5, indexing="ij")


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape: its names, the centre of its box and its half width, in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What is drawn; `relation` says how the first of two different objects lies to the second."""

    background: str
    objects: tuple[SceneObject, ...]
    relation: str | None = None


@dataclass(frozen=True)
class ObjectSpec:
    """What a caption demands of one object; `size` is None where it is left open."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class SceneSpec:
    """What a caption demands: its objects (their number is the count), and background and relation where said."""

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def count(self) -> int:
        """How many objects the picture must show."""
        return len(self.objects)


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: a single object (.22), two objects in a relation (.68), or two or three equal objects (.10)."""
    background = str(rng.choice(list(BACKGROUNDS)))
    kind = rng.random()
    if kind < 0.22:
        shape, colour, size, radius = _random_kind(rng)
        x, y = rng.uniform(radius + _MARGIN, SIDE - radius - _MARGIN, size=2)
        return Scene(background, (SceneObject(shape, colour, size, float(x), float(y), radius),))
    if kind < 0.90:
        first, second = _random_kind(rng), _random_kind(rng)
        while first[:2] == second[:2]:
            second = _random_kind(rng)
        relation = str(rng.choice(list(RELATIONS)))
        swap = relation in ("right of", "below")
        placed = _side_by_side(
            second if swap else first, first if swap else second, relation in ("above", "below"), rng
        )
        return Scene(background, placed[::-1] if swap else placed, relation)
    return Scene(background, _equal_objects(2 if kind < 0.955 else 3, rng))


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene with smooth edges: uint8 (64, 64, 3)."""
    # The background darkens by four per cent from top to bottom, so that it reads as light falling on a wall.
    shade = (1.02 - 0.04 * _ROWS / SIDE)[..., None]
    image = np.asarray(BACKGROUNDS[scene.background], dtype=np.float64) * shade
    for item in scene.objects:
        cover = coverage(item.shape, item.x, item.y, item.radius)[..., None]
        image = image * (1.0 - cover) + np.asarray(COLOURS[item.colour], dtype=np.float64) * cover
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def coverage(shape: str, x: float, y: float, radius: float) -> NDArray[np.float64]:
    """The share of each pixel that a shape covers: float (64, 64) in 0..1; (x, y) is the centre of its box."""
    inside = signed_distance(shape, (_COLUMNS - x) / radius, (_ROWS - y) / radius)
    return np.clip(inside * radius + 0.5, 0.0, 1.0)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Say a scene in one of its ways: size and background named or not, relation turned round, words varied."""
    objects, relation = scene.objects, scene.relation
    with_sizes = bool(rng.random() < 0.4)
    with_background = bool(rng.random() < 0.5)
    if relation is None:
        text = _noun_phrase(objects[0], len(objects), with_sizes, rng)
    else:
        if rng.random() < 0.5:
            objects, relation = objects[::-1], OPPOSITE[relation]
        both = [_noun_phrase(item, 1, with_sizes and bool(rng.random() < 0.75), rng) for item in objects]
        phrase = RELATIONS[relation][int(rng.random() < 0.35)]
        text = f"{both[0]} {phrase} {both[1]}"
    if not with_background:
        return text
    long = f"{text} on a {scene.background} background"
    short = f"{text} on {scene.background}"
    return short if rng.random() < 0.3 or len(long.split()) > MAX_WORDS else long


def parse_caption(text: str) -> SceneSpec | None:
    """Read what a caption demands; None where the sentence is outside the grammar."""
    match = _SENTENCE.fullmatch(" ".join(text.lower().strip().rstrip(".").split()))
    if match is None:
        return None
    background = match["background"]
    if match["number"] is not None:
        shape = next(name for name, plural in PLURALS.items() if plural == match["plural"])
        one = ObjectSpec(shape, match["many_colour"], _size_named(match["many_size"]))
        return SceneSpec((one,) * NUMBERS[match["number"]], None, background)
    first = ObjectSpec(match["shape"], match["colour"], _size_named(match["size"]))
    if match["relation"] is None:
        return SceneSpec((first,), None, background)
    relation = next(name for name, phrases in RELATIONS.items() if match["relation"] in phrases)
    second = ObjectSpec(match["shape_2"], match["colour_2"], _size_named(match["size_2"]))
    return SceneSpec((first, second), relation, background)


def signed_distance(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distance to a shape's outline, positive inside, for points given in units of its radius."""
    if shape == "circle":
        return 0.98 - np.hypot(x, y)
    if shape == "square":
        return 0.88 - np.maximum(np.abs(x), np.abs(y))
    if shape == "triangle":
        # Corners (0, -0.95) and (±1, 0.8); the slanted sides have the normal (1.75, -1) before scaling.
        slant = (0.95 + y - 1.75 * np.abs(x)) / np.hypot(1.75, 1.0)
        return np.minimum(0.8 - y, slant)
    if shape == "star":
        return _distance_in_star(x, y)
    long, short = 0.97, 0.34
    flat = np.minimum(long - np.abs(x), short - np.abs(y))
    tall = np.minimum(short - np.abs(x), long - np.abs(y))
    return np.maximum(flat, tall)


def _distance_in_star(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Five points, folded into the one wedge between a tip and the notch beside it."""
    tip, notch, wedge = 1.06, 0.47, np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + wedge) % (2 * wedge) - wedge)
    distance = np.hypot(x, y)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    edge_x, edge_y = notch * np.cos(wedge) - tip, notch * np.sin(wedge)
    return ((tip - along) * edge_y + across * edge_x) / np.hypot(edge_x, edge_y)


def _random_kind(rng: np.random.Generator) -> tuple[str, str, str, float]:
    """A shape, a colour, a size and a radius in pixels."""
    size = "large" if rng.random() < 0.5 else "small"
    return str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), size, float(rng.uniform(*RADII[size]))


def _side_by_side(
    first: tuple[str, str, str, float], second: tuple[str, str, str, float], vertical: bool, rng: np.random.Generator
) -> tuple[SceneObject, SceneObject]:
    """Place two kinds along an axis, the first on the left or on top."""
    reach_1, reach_2 = first[3] + _MARGIN, second[3] + _MARGIN
    least = first[3] + second[3] + _GAP
    spare = max(SIDE - reach_1 - reach_2 - least, 0.0)
    apart = least + rng.random() * min(spare, 10.0)
    start = reach_1 + rng.random() * max(SIDE - reach_1 - reach_2 - apart, 0.0)
    middle = rng.uniform(26.0, 38.0)
    drift = rng.uniform(-4.0, 4.0)
    across_1 = float(np.clip(middle + drift, reach_1, SIDE - reach_1))
    across_2 = float(np.clip(middle - drift, reach_2, SIDE - reach_2))
    places = [(start, across_1), (start + apart, across_2)]
    (x_1, y_1), (x_2, y_2) = [(b, a) if vertical else (a, b) for a, b in places]
    return (
        SceneObject(first[0], first[1], first[2], float(x_1), float(y_1), first[3]),
        SceneObject(second[0], second[1], second[2], float(x_2), float(y_2), second[3]),
    )


def _equal_objects(num_objects: int, rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Two or three objects of one kind (three are always small) that do not touch."""
    shape, colour, size, radius = _random_kind(rng)
    if num_objects == 2:
        kind = (shape, colour, size, radius)
        return _side_by_side(kind, kind, bool(rng.random() < 0.5), rng)
    radius = float(rng.uniform(*RADII["small"]))
    while True:
        places = rng.uniform(radius + _MARGIN, SIDE - radius - _MARGIN, size=(num_objects, 2))
        gaps = np.abs(places[:, None] - places[None]).max(-1)[np.triu_indices(num_objects, 1)]
        if gaps.min() >= 2 * radius + _GAP:
            return tuple(SceneObject(shape, colour, "small", float(x), float(y), radius) for x, y in places)


def _noun_phrase(item: SceneObject, num_objects: int, with_size: bool, rng: np.random.Generator) -> str:
    """An object in words: "a big red circle", "an orange star", "two green triangles"."""
    size = SIZE_WORDS[item.size][int(rng.random() < 0.3)] + " " if with_size else ""
    if num_objects > 1:
        number = next(word for word, value in NUMBERS.items() if value == num_objects)
        return f"{number} {size}{item.colour} {PLURALS[item.shape]}"
    words = f"{size}{item.colour} {item.shape}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _size_named(word: str | None) -> str | None:
    """The size that a size word stands for."""
    return None if word is None else next(name for name, words in SIZE_WORDS.items() if word in words)


def _sentence() -> re.Pattern[str]:
    """The grammar as one pattern with a named group for each thing a caption can say."""
    colour = "|".join(COLOURS)
    size = "|".join(word for words in SIZE_WORDS.values() for word in words)
    shape = "|".join(SHAPES)
    relation = "|".join(phrase for phrases in RELATIONS.values() for phrase in phrases)
    one = rf"an? (?:(?P<size>{size}) )?(?P<colour>{colour}) (?P<shape>{shape})"
    two = rf"an? (?:(?P<size_2>{size}) )?(?P<colour_2>{colour}) (?P<shape_2>{shape})"
    many = (
        rf"(?P<number>{'|'.join(NUMBERS)}) (?:(?P<many_size>{size}) )?(?P<many_colour>{colour}) "
        rf"(?P<plural>{'|'.join(PLURALS.values())})"
    )
    ground = "|".join(BACKGROUNDS)
    return re.compile(
        rf"(?:{many}|{one}(?: (?:is )?(?P<relation>{relation}) {two})?)"
        rf"(?: on (?:an? )?(?P<background>{ground})(?: background)?)?"
    )


_SENTENCE = _sentence()
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*COLOURS, *BACKGROUNDS, *SHAPES, *PLURALS.values(), *NUMBERS, "a", "an", "on", "background", "is"}
        | {word for words in SIZE_WORDS.values() for word in words}
        | {word for phrases in RELATIONS.values() for phrase in phrases for word in phrase.split()}
    )
)
