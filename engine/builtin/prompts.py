"""Prompts for tuning and for testing, disjoint by construction: what a caption always says decides its side.

A caption may leave sizes and background out, so the hash takes shapes, colours, number and arrangement only: "a red
star left of a blue cross" and "a big blue cross to the right of a red star on grey" fall on the same side. Pretraining
draws from the training side, so the model has met none of the held-out combinations either.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from engine.builtin.scenes import OPPOSITE, Scene, SceneSpec, caption, parse_caption, random_scene

HELD_OUT_SHARE = 0.1


def meaning(scene: Scene | SceneSpec) -> str:
    """The one canonical sentence of all captions of a scene, without sizes and background."""
    names = [f"{item.colour} {item.shape}" for item in scene.objects]
    if scene.relation is None:
        return f"{len(names)} {names[0]}"
    relation = scene.relation
    if relation in ("right of", "below"):
        names, relation = names[::-1], OPPOSITE[relation]
    return f"{names[0]} {relation} {names[1]}"


def is_held_out(scene: Scene | SceneSpec) -> bool:
    """Whether a scene is kept from all training."""
    return zlib.crc32(meaning(scene).encode()) % 1000 < 1000 * HELD_OUT_SHARE


def scenes(rng: np.random.Generator, held_out: bool = False) -> Iterator[Scene]:
    """Random scenes without end, from one side of the split."""
    while True:
        scene = random_scene(rng)
        if is_held_out(scene) == held_out:
            yield scene


def training_prompts(n: int, seed: int = 0) -> list[str]:
    """`n` different captions from the training side."""
    return _captions(n, seed, held_out=False)


def held_out_prompts(n: int, seed: int = 0) -> list[str]:
    """`n` different captions of combinations that no training has seen."""
    return _captions(n, seed, held_out=True)


def prompt_is_held_out(prompt: str) -> bool:
    """Which side a caption is on; a sentence outside the grammar raises ValueError."""
    spec = parse_caption(prompt)
    if spec is None:
        raise ValueError(f"The built-in model's grammar does not know the sentence {prompt!r}.")
    return is_held_out(spec)


def _captions(n: int, seed: int, held_out: bool) -> list[str]:
    """The first `n` different captions of a stream of scenes."""
    rng = np.random.default_rng([seed, int(held_out)])
    found: dict[str, None] = {}
    for scene in scenes(rng, held_out):
        if len(found) >= n:
            break
        found[caption(scene, rng)] = None
    return list(found)
