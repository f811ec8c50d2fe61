"""Rewards with published weights: what is refused in which words, batches, and what is computed once."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from engine.process import parse_arguments, run_conversion
from engine.rewards import REWARDS, Reward
from engine.rewards.conversion import ConversionError, convert
from engine.rewards.preprocessing import Preprocessing, read_preprocessing
from engine.rewards.pretrained import Pretrained
from engine.settings import RewardSettings
from tests.parity.rewards.inputs import clip_vocabulary

CPU = torch.device("cpu")
MODEL_REWARDS = ("clip_score", "hpsv2", "pickscore", "image_reward", "aesthetic")
CONVERTED = ("hpsv2", "image_reward", "aesthetic")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in transformers' form."""
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    vocabulary = clip_vocabulary([])
    end = len(vocabulary) - 1
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(
            vision_config=size | {"image_size": 8, "patch_size": 4, "projection_dim": 8}, projection_dim=8,
            text_config=size | {"vocab_size": len(vocabulary), "projection_dim": 8, "eos_token_id": end},
        ))  # fmt: skip
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def made(name: str, folder: Path | None) -> Reward:
    return REWARDS[name](RewardSettings(name=name, weights=None if folder is None else str(folder)), CPU)


def some_images(rng: np.random.Generator, number: int) -> np.ndarray:
    return rng.integers(0, 256, (number, 12, 10, 3), dtype=np.uint8)


# Scoring --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip_score", "hpsv2", "pickscore"])
def test_a_batch_scores_as_its_images_one_by_one(name: str, clip_folder: Path, rng: np.random.Generator) -> None:
    reward, images = made(name, clip_folder), some_images(rng, 35)  # more than go through the encoder at a time
    prompts = [f"cat {i % 3}" for i in range(35)]
    together = reward.score(images, prompts).values
    apart = [reward.score(images[i : i + 1], prompts[i : i + 1]).values[0] for i in range(35)]
    np.testing.assert_allclose(together, apart, atol=1e-5 * max(1, np.abs(together).max()))
    assert together.std() > 0


def test_a_repeated_prompt_is_read_once(clip_folder: Path, rng: np.random.Generator) -> None:
    reward: Any = made("clip_score", clip_folder)
    read: list[int] = []
    reward.clip.model.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    reward.score(some_images(rng, 6), ["a", "b", "a", "a", "b", "a"])
    assert read == [2]


def test_a_prompt_longer_than_the_model_reads_is_cut(clip_folder: Path, rng: np.random.Generator) -> None:
    reward, image = made("clip_score", clip_folder), some_images(rng, 1)
    long, longer = "x " * 80, "x " * 300
    assert reward.score(image, [long]).values == reward.score(image, [longer]).values


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_weights_stay_out_of_training(name: str, clip_folder: Path) -> None:
    if name in ("clip_score", "hpsv2", "pickscore"):
        reward: Any = made(name, clip_folder)
        assert not any(parameter.requires_grad for parameter in reward.clip.model.parameters())


@pytest.mark.parametrize("all_here", [True, False])
def test_a_hub_is_asked_only_for_what_is_not_here(
    all_here: bool, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, each file that a hub is asked for would be waited for."""
    asked: list[bool] = []
    original = CLIPModel.from_pretrained.__func__

    def from_pretrained(cls: Any, place: str, **options: Any) -> Any:
        asked.append(options.pop("local_files_only", False))
        if asked[-1] and not all_here:
            raise OSError("a shard is not in the cache")
        return original(cls, clip_folder, **options)

    monkeypatch.setattr(CLIPModel, "from_pretrained", classmethod(from_pretrained))
    weights = Pretrained("clip_score", "someone/something", None, "")
    weights.model(CLIPModel, torch.float32)
    assert asked == ([True] if all_here else [True, False])


# Weights that are missing or wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVERTED)
def test_without_weights_a_reward_says_where_they_are_had(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has no weights.*Fetch .*`palate rewards convert .* --out FOLDER`"):
        made(name, None)


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_an_empty_folder_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} cannot use the weights .*there is no .*`weights`"):
        made(name, tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder here, and no hub gave their config\.json"):
        made("pickscore", tmp_path / "nowhere")


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match='a model of the type "bert", not "clip"'):
        made("pickscore", tmp_path)


def test_a_tensor_that_is_absent_is_not_made_up(clip_folder: Path, tmp_path: Path) -> None:
    """transformers would draw it at random, and say so in a log."""
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are absent .*, such as visual_projection\.weight"):
        made("clip_score", folder)


def test_a_damaged_weights_file_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="clip_score cannot use the weights"):
        made("clip_score", folder)


def test_a_folder_made_for_another_reward_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "reward.json").write_text(json.dumps({"reward": "hpsv2"}))
    made("hpsv2", folder)
    with pytest.raises(ValueError, match="they are of the reward hpsv2"):
        made("clip_score", folder)


# Conversion -----------------------------------------------------------------------------------------------------------


class Trap:
    """A pickle that would make a file when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    file, sprung = tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "sprung"
    torch.save({"state_dict": {"a": torch.ones(1)}, "more": Trap(sprung)}, file)
    with pytest.raises(ConversionError, match="holds more than weights"):
        convert(file, tmp_path / "out")
    assert not sprung.exists()
    file.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ConversionError, match="holds more than weights"):
        convert(file, tmp_path / "out")
    assert not sprung.exists()


def test_every_cut_of_a_checkpoint_is_refused_in_a_sentence(tmp_path: Path, rng: np.random.Generator) -> None:
    file = tmp_path / "whole.pt"
    torch.save({"layers.0.weight": torch.ones(1, 4), "layers.0.bias": torch.ones(1)}, file)
    whole = file.read_bytes()
    cut = tmp_path / "cut.pt"
    for length in [0, 1, 2, 10, *rng.integers(0, len(whole) - 1, 30).tolist()]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match=r"cut\.pt"):
            convert(cut, tmp_path / "out")
        cut.write_bytes(rng.bytes(max(1, length)))
        with pytest.raises(ConversionError, match=r"cut\.pt"):
            convert(cut, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pt", "whole.pt"]


@pytest.mark.parametrize(
    ("tensors", "reward", "words"),
    [
        ({"unet.conv_in.weight": torch.ones(1)}, None, "not a checkpoint that Palate can convert.*unet.conv_in.weight"),
        ({"visual.conv1.weight": torch.ones(2, 3, 4, 4)}, None, "say which with --reward"),
        ({"visual.conv1.weight": torch.ones(2, 3, 4, 4)}, "hpsv2", "is not a whole open_clip checkpoint"),
        ({"visual.conv1.weight": torch.ones(2, 3, 4, 4)}, "aesthetic", "not a checkpoint of aesthetic, but of hpsv2"),
        ({"blip.visual_encoder.cls_token": torch.ones(1)}, None, "is not a whole ImageReward checkpoint"),
        ({"layers.0.weight": torch.ones(3, 4), "layers.0.bias": torch.ones(3)}, None, "not a whole aesthetic head"),
        ({"layers.0.weight": torch.full((1, 4), torch.nan), "layers.0.bias": torch.ones(1)}, None, "are no numbers"),
    ],
)
def test_what_is_something_else_is_refused(
    tensors: dict[str, Any], reward: str | None, words: str, tmp_path: Path
) -> None:
    torch.save(tensors, tmp_path / "file.pt")
    with pytest.raises(ConversionError, match=words):
        convert(tmp_path / "file.pt", tmp_path / "out", reward)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="exists already"):
        convert(tmp_path / "file.pt", tmp_path / "out")


def test_the_linear_head_on_a_clip_of_another_width_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1, 9), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(ConversionError, match=r"for a CLIP with 9 features; .* gives 8"):
        convert(tmp_path / "head.pth", tmp_path / "out", base=str(clip_folder))


def test_the_first_linear_head_scores_by_its_weights(
    clip_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """LAION's first predictor is one layer: score = w·f + b with f the features of length 1."""
    weight, bias = torch.linspace(-1, 1, 8)[None], torch.tensor([5.0])
    torch.save({"weight": weight, "bias": bias}, tmp_path / "sa_0_4_vit_l_14_linear.pth")
    folder = convert(tmp_path / "sa_0_4_vit_l_14_linear.pth", tmp_path / "out", base=str(clip_folder)).folder
    images = some_images(rng, 3)
    reward: Any = made("aesthetic", folder)
    with torch.no_grad():
        features = CLIPModel.from_pretrained(clip_folder).get_image_features(reward.preprocessing(images)).pooler_output
    expected = (features / features.norm(dim=-1, keepdim=True)) @ weight[0] + bias
    np.testing.assert_allclose(reward.score(images, ["", "", ""]).values, expected.numpy(), atol=1e-5)


# Preprocessing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prepared", [Preprocessing(8, 8, 8), Preprocessing(6, 8, 9, (0.1, 0.2, 0.3), (1.0, 1.0, 2.0), 2, True, True),
                 Preprocessing(7, 5, None)],
)  # fmt: skip
def test_preprocessing_is_read_as_it_was_written(prepared: Preprocessing, tmp_path: Path) -> None:
    prepared.write(tmp_path)
    assert read_preprocessing(tmp_path / "preprocessor_config.json") == prepared


@pytest.mark.parametrize(
    "size", [({"shortest_edge": 30}, 30), ({"shortest_edge": 33}, 30), ({"height": 30, "width": 20}, None)]
)
def test_preprocessing_is_that_of_transformers(size: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    processor = CLIPImageProcessorPil(size=size[0], crop_size=size[1] or size[0], do_center_crop=size[1] is not None)
    processor.save_pretrained(tmp_path)
    for shape in ((97, 61), (61, 97), (20, 31), (300, 451)):
        images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
        expected = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
        found = read_preprocessing(tmp_path / "preprocessor_config.json")(images)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-6)


@pytest.mark.parametrize(
    "asked", [{"do_resize": False}, {"do_center_crop": False}, {"crop_size": 300}, {"size": {"longest_edge": 9}}, [1]]
)
def test_preprocessing_that_is_not_done_here_is_refused(asked: Any, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(asked))
    with pytest.raises(ValueError, match="no image preprocessing that Palate knows"):
        read_preprocessing(tmp_path / "preprocessor_config.json")


def test_the_crop_is_where_each_library_puts_it() -> None:
    """Of 7 spare columns transformers drops 3 on the left, torchvision 4 (3.5 to the even number)."""
    columns = np.arange(15, dtype=np.uint8)[None, None, :, None].repeat(8, axis=1).repeat(3, axis=3)
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    for rounds, first in ((False, 3), (True, 4)):
        values = Preprocessing(8, 8, 8, **plain, rounds_offset=rounds)(columns)
        np.testing.assert_allclose(values[0, 0, 0].numpy(), np.arange(first, first + 8), atol=1e-4)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_engine_converts_and_says_how_to_use_it(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    head, out = tmp_path / "head.pth", tmp_path / "out"
    words = ["convert", "--file", str(head), "--out", str(out), "--base", str(clip_folder)]
    assert run_conversion(parse_arguments(words)) == 0
    assert f"{{name: aesthetic, weights: {out}}}" in capsys.readouterr().out
    assert json.loads((out / "reward.json").read_text())["file"] == "head.pth"
    assert run_conversion(parse_arguments(words)) == 2
    assert "exists already" in capsys.readouterr().err
