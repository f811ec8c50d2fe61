"""What is said of a model before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine import model_checks
from engine.builtin import WEIGHTS
from engine.model_checks import check_model
from engine.settings import RunSettings

SHARD = "transformer/diffusion_pytorch_model.safetensors"


def settings_of(folder: Path, name: str = "sd3", guidance: float = 1.0, **model: Any) -> RunSettings:
    return RunSettings.model_validate({
        "model": {"name": name, "folder": str(folder)} | model, "sampling": {"guidance_scale": guidance},
    })  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in model, which is a Stable Diffusion 3 in small."""
    return Path(shutil.copytree(WEIGHTS, tmp_path / "model"))


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_whole_models_pass(folder: Path) -> None:
    check_model(RunSettings())
    check_model(settings_of(folder))
    check_model(settings_of(folder, start_from=str(folder)))


def test_what_is_no_whole_pipeline(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"but flux needs a FluxPipeline; set model\.name to sd3"):
        check_model(settings_of(folder, "flux"))
    shutil.move(folder / SHARD, folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds pickles \(transformer/\) where safetensors should be"):
        check_model(settings_of(folder))
    (folder / "transformer" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="is not whole: transformer/"):
        check_model(settings_of(folder))
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        check_model(settings_of(folder / "vae"))


def test_files_that_end_too_early_or_say_too_little(folder: Path) -> None:
    shard = folder / SHARD
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="is not whole: it ends before its tensors do"):
        check_model(settings_of(folder))
    shard.write_bytes(data)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ValueError, match="a part or a configuration lacks 'sample_size'"):
        check_model(settings_of(folder))


def test_a_size_that_no_tokens_make(folder: Path) -> None:
    change(folder / "vae" / "config.json", spatial_compression_ratio=16)
    check_model(settings_of(folder, resolution=64))
    with pytest.raises(ValueError, match=r"model\.resolution is 720, but this model draws multiples of 32 pixels"):
        check_model(settings_of(folder, resolution=720))


def test_a_scheduler_that_needs_scipy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder / "scheduler" / "scheduler_config.json", use_beta_sigmas=True)
    check_model(settings_of(folder))
    monkeypatch.setattr(model_checks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs scipy; install it with .*\[beta\]"):
        check_model(settings_of(folder))


@pytest.mark.parametrize(
    ("name", "pipeline", "file", "guided", "distilled"),
    [
        ("flux", "FluxPipeline", "transformer/config.json", {"guidance_embeds": True}, {"guidance_embeds": False}),
        ("flux2", "Flux2Pipeline", "transformer/config.json", {}, {"guidance_embeds": False}),
        ("flux2_klein", "Flux2KleinPipeline", "model_index.json", {"is_distilled": False}, {"is_distilled": True}),
        ("z_image", "ZImagePipeline", "scheduler/scheduler_config.json", {"shift": 3.0}, None),
    ],
)
def test_a_distilled_model_takes_no_guidance(
    folder: Path, name: str, pipeline: str, file: str, guided: dict[str, Any], distilled: dict[str, Any] | None
) -> None:
    change(folder / "model_index.json", _class_name=pipeline)
    change(folder / file, **guided)
    check_model(settings_of(folder, name, 3.5))
    if distilled is not None:
        change(folder / file, **distilled)
        check_model(settings_of(folder, name, 1.0))
        with pytest.raises(ValueError, match=r"The guidance scale is 3\.5, but model is distilled and takes none"):
            check_model(settings_of(folder, name, 3.5))


def test_mean_velocities_of_whole_steps_are_refused(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="HunyuanImagePipeline")
    change(folder / "transformer" / "config.json", guidance_embeds=True)
    check_model(settings_of(folder, "hunyuan_image", 3.25))
    change(folder / "transformer" / "config.json", use_meanflow=True)
    with pytest.raises(ValueError, match="no stochastic step can be made of that; choose a folder of the base model"):
        check_model(settings_of(folder, "hunyuan_image", 3.25))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"transformer.a.lora_A.weight": torch.zeros(2, 3), "transformer.a.lora_B.weight": torch.zeros(3, 2)}, ""),
        ({"lora_te1_a.lora_down.weight": torch.zeros(2, 3)}, "adapts the text encoders too"),
        ({"a.lora_down.weight": torch.zeros(2, 3), "a.dora_scale": torch.zeros(3)}, "is a DoRA"),
        ({"as.its.authors.name.it": torch.zeros(2)}, ""),
        (None, "is no safetensors file"),
    ],
)
def test_files_to_start_from(folder: Path, tmp_path: Path, tensors: dict[str, torch.Tensor] | None, says: str) -> None:
    start = tmp_path / "start.safetensors"
    if tensors is None:
        start.write_bytes(b"PK\x03\x04 a pickle in a zip")
    else:
        save_file(tensors, start)
    settings = settings_of(folder, start_from=str(start))
    if says:
        with pytest.raises(ValueError, match=says):
            check_model(settings)
    else:
        check_model(settings)


def test_folders_to_start_from(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no transformer"):
        check_model(settings_of(folder, start_from=str(tmp_path)))
    other = tmp_path / "other"
    other.mkdir()
    save_file({"a": torch.zeros(1)}, other / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="is another model's transformer"):
        check_model(settings_of(folder, start_from=str(other)))
