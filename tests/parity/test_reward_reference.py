"""Rewards against the original code's figures for the same random weights (rewards/reference.json).

Each test makes the original checkpoint anew, from the seed and the shapes in the reference, converts it as a user
would, and scores the same images. How the figures were got stands in rewards/make_reference.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from engine.rewards import REWARDS, Reward
from engine.rewards.conversion import convert
from engine.rewards.preprocessing import Preprocessing
from engine.settings import RewardSettings
from tests.parity.rewards.inputs import BERT_VOCABULARY, FOLDER, PROMPTS, UNMENDED, clip_vocabulary, images, weights

REFERENCE: dict[str, Any] = json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))
CASES: dict[str, Any] = REFERENCE["cases"]
TOLERANCE = 1e-4
PIXEL_TOLERANCE = 2e-6  # float32, on values up to 2.7

CROPPED = Preprocessing(224, 224, 224, rounds_offset=True)
PREPROCESSING = {
    "hpsv2": replace(CROPPED, resizes_floats=True),
    "clip_score_squash": Preprocessing(224, 224, None),
    "clip_score_shortest": CROPPED,
    "pickscore": Preprocessing(224, 224, 224),
    "image_reward": CROPPED,
    "aesthetic": CROPPED,
}


def clip_tokenizer(folder: Path) -> Path:
    vocabulary = clip_vocabulary(REFERENCE["merges"])
    CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in REFERENCE["merges"]]).save_pretrained(folder)
    return folder


def checkpoint(folder: Path, name: str, case: dict[str, Any], *, wrapped: bool = False) -> Path:
    """The original's checkpoint file, as its authors would have saved it."""
    folder.mkdir(exist_ok=True)
    tensors = weights(case["shapes"], case["seed"])
    torch.save({"state_dict": tensors} if wrapped else tensors, folder / name)
    return folder / name


def made(name: str, weights_folder: Path) -> Reward:
    settings = RewardSettings(name=name, weights=str(weights_folder))
    return REWARDS[name](settings, torch.device("cpu"))


def check_scores(reward: Reward, case: dict[str, Any]) -> None:
    for batch, expected in zip(images(), case["scores"], strict=True):
        np.testing.assert_allclose(reward.score(batch, PROMPTS).values, expected, rtol=0, atol=TOLERANCE)


def hpsv2_folder(tmp_path: Path) -> Path:
    case = CASES["hpsv2"]
    file = checkpoint(tmp_path / "original", "HPS_v2.1_compressed.pt", case, wrapped=True)
    (file.parent / "open_clip_config.json").write_text(json.dumps(case["config"]))
    return convert(file, tmp_path / "hpsv2", base=str(clip_tokenizer(tmp_path / "tokenizer"))).folder


def test_hpsv2(tmp_path):
    check_scores(made("hpsv2", hpsv2_folder(tmp_path)), CASES["hpsv2"])


def check_mended(reward: Reward, case: dict[str, Any]) -> None:
    photograph = images()[0][:1]
    plain = replace(reward.clip, mends_prompts=False)
    for prompt, expected in zip(UNMENDED, case["mended"], strict=True):
        assert reward.score(photograph, [prompt]).values[0] == pytest.approx(expected, abs=TOLERANCE), prompt
        assert float(plain.similarities(photograph, [prompt])) != pytest.approx(expected, abs=3 * TOLERANCE), prompt


def test_hpsv2_reads_prompts_as_the_original(tmp_path):
    check_mended(made("hpsv2", hpsv2_folder(tmp_path)), CASES["hpsv2"])


def test_hpsv2_resized_as_the_others_are_would_be_another_score(tmp_path):
    """So that the figures above prove the preprocessing too."""
    reward = made("hpsv2", hpsv2_folder(tmp_path))
    plain = replace(reward.clip.preprocessing, resizes_floats=False)
    changed = replace(reward, clip=replace(reward.clip, preprocessing=plain))
    batch, expected = images()[0], CASES["hpsv2"]["scores"][0]
    assert np.abs(changed.score(batch, PROMPTS).values - expected).max() > 3 * TOLERANCE


@pytest.mark.parametrize("name", ["clip_score_squash", "clip_score_shortest"])
def test_clip_score_of_an_open_clip_checkpoint(name, tmp_path):
    case = CASES[name]
    file = checkpoint(tmp_path / "original", "open_clip_pytorch_model.bin", case)
    (file.parent / "open_clip_config.json").write_text(json.dumps(case["config"]))
    base = str(clip_tokenizer(tmp_path / "tokenizer"))
    reward = made("clip_score", convert(file, tmp_path / "clip", "clip_score", base).folder)
    check_scores(reward, case)
    check_mended(reward, case)


def pickscore_folder(tmp_path: Path) -> Path:
    case = CASES["pickscore"]
    model = CLIPModel(CLIPConfig(**case["config"]))
    model.load_state_dict(weights(case["shapes"], case["seed"]))
    model.save_pretrained(tmp_path / "pickscore")
    Preprocessing(30, 30, 30).write(tmp_path / "pickscore")
    return clip_tokenizer(tmp_path / "pickscore")


def test_pickscore(tmp_path):
    check_scores(made("pickscore", pickscore_folder(tmp_path)), CASES["pickscore"])


def image_reward_folder(tmp_path: Path) -> Path:
    case = CASES["image_reward"]
    file = checkpoint(tmp_path / "original", "ImageReward.pt", case)
    (file.parent / "med_config.json").write_text(json.dumps(case["config"]))
    (tmp_path / "bert").mkdir()
    BertTokenizer(vocab={word: i for i, word in enumerate(BERT_VOCABULARY)}).save_pretrained(tmp_path / "bert")
    return convert(file, tmp_path / "image_reward", base=str(tmp_path / "bert")).folder


def test_image_reward(tmp_path):
    check_scores(made("image_reward", image_reward_folder(tmp_path)), CASES["image_reward"])


def aesthetic_folder(tmp_path: Path) -> Path:
    case = CASES["aesthetic"]
    encoder = checkpoint(tmp_path / "openai", "ViT-L-14.pt", case["clip"])
    described = {"model_cfg": {"quick_gelu": True, "text_cfg": {"heads": 2}}}
    (encoder.parent / "open_clip_config.json").write_text(json.dumps(described))
    base = convert(encoder, tmp_path / "clip", "clip_score", str(clip_tokenizer(tmp_path / "tokenizer"))).folder
    head = checkpoint(tmp_path / "head", "sac+logos+ava1-l14-linearMSE.pth", case)
    return convert(head, tmp_path / "aesthetic", base=str(base)).folder


def test_aesthetic(tmp_path):
    check_scores(made("aesthetic", aesthetic_folder(tmp_path)), CASES["aesthetic"])


@pytest.mark.parametrize(
    ("name", "folder"),
    [("hpsv2", hpsv2_folder), ("pickscore", pickscore_folder), ("image_reward", image_reward_folder),
     ("aesthetic", aesthetic_folder)],
)  # fmt: skip
def test_in_bfloat16_scores_stay_close(name, folder, tmp_path, monkeypatch):
    """As on a GPU: bfloat16 has 8 bits, which these random weights, louder than trained ones, blow up to percents."""
    for module in ("clip", "image_reward", "aesthetic"):
        monkeypatch.setattr(f"engine.rewards.{module}.precision_on", lambda device: torch.bfloat16)
    batch, expected = images()[0], np.array(CASES[name]["scores"][0])
    found = made(name, folder(tmp_path)).score(batch, PROMPTS).values
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.05 * max(1.0, np.abs(expected).max())
    assert np.abs(found - expected).max() > 0  # it did compute in bfloat16


@pytest.mark.parametrize("name", PREPROCESSING)
def test_a_photograph_is_prepared_as_by_the_original(name):
    said = CASES[name]["pixels"]
    values = PREPROCESSING[name](images()[0][:1])[0]
    assert list(values.shape) == said["shape"]
    found = values.flatten()[:: said["every"]].numpy()
    np.testing.assert_allclose(found, said["values"], rtol=0, atol=PIXEL_TOLERANCE)
