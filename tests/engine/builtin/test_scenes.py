"""Scenes are said and read back alike, and the two sides of the split never meet."""

import numpy as np
import pytest

from engine.builtin.prompts import held_out_prompts, is_held_out, prompt_is_held_out, scenes, training_prompts
from engine.builtin.scenes import (
    MAX_WORDS,
    OPPOSITE,
    SIDE,
    VOCABULARY,
    Scene,
    caption,
    parse_caption,
    random_scene,
    render,
)


def _drawn(num: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(num)]


def test_a_caption_demands_only_what_its_scene_shows() -> None:
    rng = np.random.default_rng(1)
    for scene in _drawn(500):
        spec = parse_caption(caption(scene, rng))
        assert spec is not None
        assert spec.count == len(scene.objects)
        assert spec.background in (None, scene.background)
        objects = scene.objects if spec.relation == scene.relation else scene.objects[::-1]
        assert spec.relation in (scene.relation, OPPOSITE.get(scene.relation or ""))
        for demanded, shown in zip(spec.objects, objects, strict=True):
            assert (demanded.shape, demanded.colour) == (shown.shape, shown.colour)
            assert demanded.size in (None, shown.size)


def test_captions_fit_the_tokenizer() -> None:
    rng = np.random.default_rng(2)
    for scene in _drawn(500):
        words = caption(scene, rng).split()
        assert len(words) <= MAX_WORDS
        assert set(words) <= set(VOCABULARY)


def test_objects_stay_inside_and_apart() -> None:
    for scene in _drawn(500):
        for item in scene.objects:
            assert item.radius <= min(item.x, item.y, SIDE - item.x, SIDE - item.y)
        for index, one in enumerate(scene.objects):
            for other in scene.objects[:index]:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) >= one.radius + other.radius


def test_a_render_is_an_image() -> None:
    image = render(_drawn(1)[0])
    assert image.shape == (SIDE, SIDE, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("text", ["", "a cat", "a red circle beside a blue square", "four red circles", "red"])
def test_other_sentences_are_not_understood(text: str) -> None:
    assert parse_caption(text) is None


def test_capitals_spaces_and_a_full_stop_do_no_harm() -> None:
    assert parse_caption("A red  circle left of a Blue square.") == parse_caption("a red circle left of a blue square")


def test_the_two_sides_are_disjoint() -> None:
    training, held_out = training_prompts(600, seed=3), held_out_prompts(200, seed=3)
    assert len(set(training)) == 600
    assert len(set(held_out)) == 200
    assert not any(prompt_is_held_out(prompt) for prompt in training)
    assert all(prompt_is_held_out(prompt) for prompt in held_out)


def test_every_way_of_saying_a_scene_is_on_its_side() -> None:
    rng = np.random.default_rng(4)
    for scene in _drawn(100):
        assert {prompt_is_held_out(caption(scene, rng)) for _ in range(5)} == {is_held_out(scene)}


def test_pretraining_scenes_come_from_the_training_side() -> None:
    stream = scenes(np.random.default_rng(5))
    assert not any(is_held_out(next(stream)) for _ in range(300))


def test_prompts_are_the_same_for_the_same_seed() -> None:
    assert training_prompts(20, seed=6) == training_prompts(20, seed=6)
    assert training_prompts(20, seed=6) != training_prompts(20, seed=7)


def test_a_sentence_outside_the_grammar_has_no_side() -> None:
    with pytest.raises(ValueError, match="grammar does not know"):
        prompt_is_held_out("a cat")
