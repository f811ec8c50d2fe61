"""The checker passes what is right, refuses what is wrong, and grades in between."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.builtin.checker import ATTRIBUTES, check
from engine.builtin.scenes import Scene, SceneObject, caption, random_scene, render

PROMPT = "a large red circle left of a small blue square on a white background"


def _picture(
    shape: str = "circle", colour: str = "red", size: str = "large", x: float = 20, background: str = "white"
) -> NDArray[np.uint8]:
    """The scene of PROMPT, with the first object or the background changed."""
    radius = 14.2 if size == "large" else 10.0
    first = SceneObject(shape, colour, size, x, 30, radius)
    second = SceneObject("square", "blue", "small", 64 - x + 3, 34, 10.0)
    return render(Scene(background, (first, second), "left of"))


def test_ground_truth_is_right() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_scene(rng) for _ in range(300)]
    results = [check(render(scene), caption(scene, rng)) for scene in drawn]
    assert np.mean([result.correct for result in results]) >= 0.98
    assert np.mean([result.score for result in results]) >= 0.95


def test_the_prompts_own_picture_is_right_in_everything_asked() -> None:
    result = check(_picture(), PROMPT)
    assert result.correct
    assert result.right == set(ATTRIBUTES)


@pytest.mark.parametrize(
    ("changed", "attribute"),
    [
        ({"colour": "green"}, "colour"),
        ({"shape": "star"}, "shape"),
        ({"shape": "square"}, "shape"),
        ({"size": "small"}, "size"),
        ({"x": 47}, "relation"),
        ({"background": "black"}, "background"),
    ],
)
def test_one_wrong_attribute_is_found(changed: dict[str, str], attribute: str) -> None:
    result = check(_picture(**changed), PROMPT)  # type: ignore[arg-type]  # a mapping of mixed values
    assert not result.correct
    assert set(ATTRIBUTES) - result.right == {attribute}
    assert result.score < check(_picture(), PROMPT).score - 0.05


def test_swapped_colours_do_not_pass_for_bound_ones() -> None:
    swapped = check(_picture(), "a blue circle left of a red square")
    assert not swapped.correct
    assert "shape" not in swapped.right


def test_too_many_objects_are_counted() -> None:
    result = check(_picture(), "a red circle")
    assert "count" not in result.right
    assert result.count is not None and result.count < 0.5


@pytest.mark.parametrize("level", [0, 128, 247])
def test_an_empty_picture_earns_little(level: int) -> None:
    blank = np.full((64, 64, 3), level, dtype=np.uint8)
    result = check(blank, "a red circle left of a blue square")
    assert not result.correct
    assert result.score < 0.1


def test_noise_earns_little() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert check(noise, "a red circle left of a blue square").score < 0.5


def test_the_relation_is_graded_smoothly() -> None:
    scores = []
    for gap in (24.0, 16.0, 8.0, -8.0, -24.0):
        first = SceneObject("circle", "red", "small", 32 - gap / 2, 18, 10.0)
        second = SceneObject("square", "blue", "small", 32 + gap / 2, 44, 10.0)
        scores.append(check(render(Scene("white", (first, second))), "a red circle left of a blue square").relation)
    assert scores == sorted(scores, key=lambda value: -(value or 0.0))
    assert len(set(scores)) == len(scores)


def test_what_is_not_asked_is_none() -> None:
    result = check(_picture(), "a red circle left of a blue square")
    assert result.size is None and result.background is None
    assert result.asked == ("colour", "shape", "count", "relation")


def test_larger_pictures_are_reduced() -> None:
    assert check(_picture().repeat(4, axis=0).repeat(4, axis=1), PROMPT).correct


def test_a_prompt_outside_the_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="grammar does not know"):
        check(_picture(), "an oil painting of a cat")


def test_a_picture_without_colour_is_refused() -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        check(np.zeros((64, 64), dtype=np.uint8), PROMPT)
