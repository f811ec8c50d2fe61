"""Every reward against figures worked out by hand, its stated range, and what happens when one fails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from engine.builtin.prompts import held_out_prompts, training_prompts
from engine.builtin.scenes import caption, parse_caption, random_scene, render
from engine.catalogue import REWARD_INFO
from engine.rewards import REWARDS, Pixels, Scores, make_rewards, score_all
from engine.rewards.composition import Composition
from engine.rewards.compressibility import Compressibility
from engine.rewards.incompressibility import Incompressibility, jpeg_kilobytes
from engine.rewards.vividness import Vividness, colourfulness
from engine.settings import RewardName, RewardSettings

CPU = torch.device("cpu")
RED, GREEN, BLUE, CYAN, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 255, 255)
small_images = arrays.arrays(np.uint8, st.tuples(st.just(1), st.integers(1, 6), st.integers(1, 6), st.just(3)))


def stripes(*colours: tuple[int, int, int]) -> Pixels:
    """An image (1, 4, 4·n, 3) of vertical stripes of equal width."""
    return np.repeat(np.array(colours, dtype=np.uint8), 4, axis=0)[None, None].repeat(4, axis=1)


def test_every_reward_has_a_name_facts_and_code() -> None:
    assert set(REWARDS) == set(get_args(RewardName)) == set(REWARD_INFO)


def test_make_rewards_keeps_order() -> None:
    settings = [RewardSettings(name="vividness"), RewardSettings(name="vividness", label="more of it")]
    assert list(make_rewards(settings, CPU)) == ["vividness", "more of it"]


# Vividness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (stripes(WHITE), 0.0),
        # rg = 255, yb = 127.5 everywhere: σ = 0, so M = 0.3·√(255² + 127.5²).
        (stripes(RED), 0.3 * np.hypot(255, 127.5)),
        # Red and cyan are opposite: μ = 0 and σ = √(255² + 127.5²).
        (stripes(RED, CYAN), np.hypot(255, 127.5)),
        # rg = ±255 and yb = 127.5: σ_rg = 255, μ_yb = 127.5.
        (stripes(RED, GREEN), 255 + 0.3 * 127.5),
        # rg = (255, 0), yb = (127.5, −255).
        (stripes(RED, BLUE), np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, 63.75)),
    ],
)
def test_colourfulness_by_hand(image: Pixels, expected: float) -> None:
    assert colourfulness(image)[0] == pytest.approx(expected, rel=1e-6)


@given(image=small_images)
def test_vividness_stays_in_its_range(image: Pixels) -> None:
    low, high = REWARD_INFO["vividness"].range
    assert low <= Vividness().score(image, ["any"]).values[0] <= high


def test_the_most_vivid_image_reaches_the_end_of_the_range() -> None:
    # √(S² − m²) + 0.3·m is largest at m = 0.287·S, which red and cyan in the shares 0.644 and 0.356 come close to.
    image = stripes(*[RED] * 9, *[CYAN] * 5)
    assert Vividness().score(image, ["any"]).values[0] == pytest.approx(REWARD_INFO["vividness"].range[1], abs=0.01)


def test_images_are_scored_apart() -> None:
    both = np.concatenate([stripes(RED, BLUE), stripes(WHITE, GREEN)])
    assert np.array_equal(colourfulness(both), [colourfulness(both[:1])[0], colourfulness(both[1:])[0]])


# JPEG size ------------------------------------------------------------------------------------------------------------


def test_jpeg_size_is_that_of_the_file(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for image, kilobytes in zip(images, jpeg_kilobytes(images), strict=True):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=95)
        assert kilobytes == pytest.approx(len(stream.getvalue()) / 1000)


def test_noise_is_harder_to_compress_than_a_plain_image(rng: np.random.Generator) -> None:
    images = np.stack([np.full((64, 64, 3), 128, np.uint8), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)])
    busy, simple = (reward.score(images, ["", ""]).values for reward in (Incompressibility(), Compressibility()))
    assert busy[1] > 3 * busy[0]
    assert np.array_equal(simple, -busy)


@pytest.mark.parametrize("name", ["compressibility", "incompressibility"])
def test_jpeg_sizes_stay_in_their_range(name: RewardName, rng: np.random.Generator) -> None:
    noise = rng.choice(np.array([0, 255], np.uint8), (1, 64, 64, 3))  # the hardest kind of image
    plain = np.zeros((1, 64, 64, 3), np.uint8)
    low, high = REWARD_INFO[name].range
    for image in (noise, plain):
        assert low <= REWARDS[name](RewardSettings(name=name), CPU).score(image, [""]).values[0] <= high


# Composition ----------------------------------------------------------------------------------------------------------


def test_composition_tells_a_right_image_from_a_wrong_one(rng: np.random.Generator) -> None:
    scenes = [random_scene(rng) for _ in range(40)]
    images = np.stack([render(scene) for scene in scenes])
    captions = held_out_prompts(40)
    own = Composition().score(images, [caption(scene, rng) for scene in scenes])
    other = Composition().score(images, captions)
    assert own.extras["all_correct"].mean() >= 0.9
    assert other.extras["all_correct"].mean() <= 0.1
    assert own.values.mean() > other.values.mean() + 0.2
    assert own.values.dtype == own.extras["all_correct"].dtype == np.float32
    low, high = REWARD_INFO["composition"].range
    assert ((low <= other.values) & (own.values <= high)).all()


def test_composition_knows_every_built_in_prompt() -> None:
    Composition().check_prompts([*training_prompts(200), *held_out_prompts(200)])


def test_composition_refuses_a_prompt_outside_its_grammar_by_name() -> None:
    with pytest.raises(ValueError, match=r'cannot judge the prompt "a cat on a mat".*choose another reward'):
        Composition().check_prompts(["a red circle", "a cat on a mat", "a dog"])


def test_the_refusal_gives_examples_that_it_accepts() -> None:
    with pytest.raises(ValueError) as refusal:
        Composition().check_prompts(["?"])
    examples = str(refusal.value).split('"')[5::2]
    assert len(examples) == 3
    assert all(parse_caption(example) is not None for example in examples)


# Several at once ------------------------------------------------------------------------------------------------------


class Fake:
    """Scores an image by its first pixel; fails on pixels of the value 13."""

    def __init__(self, values: Any = None) -> None:
        self.values = values

    def check_prompts(self, prompts: Sequence[str]) -> None: ...

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        if self.values is not None:
            return Scores(self.values)
        first = images[:, 0, 0, 0].astype(np.float32)
        if (first == 13).any():
            raise RuntimeError("an unlucky pixel.")
        return Scores(first, {"double": 2 * first})


def batch(*values: int) -> Pixels:
    return np.array(values, np.uint8)[:, None, None, None].repeat(3, axis=3)


def test_all_rewards_are_asked_and_timed() -> None:
    scored = score_all({"vividness": Fake(), "composition": Fake()}, batch(1, 2), ["a", "b"])
    assert scored.values["vividness"].tolist() == scored.values["composition"].tolist() == [1, 2]
    assert scored.extras["double"].tolist() == [2, 4]
    assert scored.seconds.keys() == {"vividness", "composition"}
    assert all(seconds > 0 for seconds in scored.seconds.values())
    assert scored.messages == ()


def test_a_reward_that_is_used_twice_keeps_both_of_its_measures() -> None:
    scored = score_all({"first": Fake(), "second": Fake()}, batch(1, 2), ["a", "b"])
    assert scored.extras.keys() == {"double", "second double"}


def test_a_reward_says_why_it_has_no_score() -> None:
    class Mute(Fake):
        def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
            return Scores(np.array([1, np.nan], np.float32), failure="the server is gone")

    scored = score_all({"mute": Mute()}, batch(1, 2), ["a", "b"])
    (message,) = scored.messages
    assert message == "The reward mute could not score 1 of 2 images (the server is gone); they are left out."


def test_a_failing_image_is_nan_and_the_others_keep_their_scores() -> None:
    scored = score_all({"vividness": Fake(), "composition": Fake(np.ones(3))}, batch(1, 13, 3), ["a", "b", "c"])
    assert np.array_equal(scored.values["vividness"], [1, np.nan, 3], equal_nan=True)
    assert np.array_equal(scored.extras["double"], [2, np.nan, 6], equal_nan=True)
    assert scored.values["composition"].tolist() == [1, 1, 1]
    assert scored.messages == (
        "The reward vividness could not score 1 of 3 images (an unlucky pixel); they are left out.",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_nan(value: float) -> None:
    scored = score_all({"vividness": Fake(np.array([1.0, value]))}, batch(1, 2), ["a", "b"])
    assert np.array_equal(scored.values["vividness"], [1, np.nan], equal_nan=True)
    assert scored.values["vividness"].dtype == np.float32
    assert "1 of 2 images (the score is not a number)" in scored.messages[0]


@pytest.mark.parametrize("values", [np.ones(3), np.ones((2, 1)), np.array(1.0)])
def test_scores_of_the_wrong_shape_are_no_scores(values: Any) -> None:
    scored = score_all({"vividness": Fake(values)}, batch(1, 2), ["a", "b"])
    assert np.isnan(scored.values["vividness"]).all()
    assert "shape" in scored.messages[0]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
