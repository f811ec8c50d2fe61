"""Exports of real (tiny) runs: loaded by plain diffusers, compared with the gallery, refused where they are wrong."""

from __future__ import annotations

import json
import shutil
import statistics
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoModel, StableDiffusion3Pipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors.torch import load_file

from engine.artifacts.checkpoint import CheckpointError, load_checkpoint
from engine.artifacts.export import (
    EXPORT_FORMATS,
    ExportError,
    diffusers_lora,
    export_run,
    verification,
)
from engine.artifacts.export.header import read_header
from engine.artifacts.tensor_files import tensor_sha256
from engine.catalogue import EXPORT_INFO
from engine.settings import RunSettings
from engine.settings_text import from_yaml
from tests.engine.artifacts.pictures import difference, draw, tile
from tests.engine.training import train_in

STRONG = {"optimiser": {"learning_rate": 3e-2}}  # so that a wrong scale shows in the images
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": STRONG,
    "lora, averaged": {"optimiser": {"learning_rate": 3e-2, "ema_decay": 0.5}},
    "lora, guided": STRONG | {"evaluation": {"every": 2, "num_prompts": 2, "num_steps": 3, "guidance_scale": 3.0}},
    "lora, every layer": STRONG | {"tuning": {"rank": 4, "alpha": 8.0, "layers": "all"}},
    "full": {"tuning": {"method": "full"}, "optimiser": {"learning_rate": 3e-3}},
    "full, averaged": {"tuning": {"method": "full"}, "optimiser": {"learning_rate": 3e-3, "ema_decay": 0.5}},
}
Train = Callable[[str], Path]


@pytest.fixture
def trained(tiny_settings: RunSettings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a variant once a session; gives a fresh copy of its folder."""

    def make(variant: str) -> Path:
        if variant not in RUNS:
            changes = {"iterations": 2, "checkpoints": {"every": 1}} | VARIANTS[variant]
            run = tmp_path_factory.mktemp("run")
            prompts = run / "held_out.txt"
            prompts.write_text("a blue circle\nthe small square\n")
            changes["prompts"] = tiny_settings.prompts.model_dump() | {"evaluation_file": str(prompts)}
            settings = RunSettings.model_validate(tiny_settings.model_dump() | changes)
            train_in(settings, run)
            RUNS[variant] = run
        return Path(shutil.copytree(RUNS[variant], tmp_path / "run"))

    return make


RUNS: dict[str, Path] = {}


def test_formats_have_facts() -> None:
    assert EXPORT_FORMATS.keys() == EXPORT_INFO.keys()
    for name, kinds in EXPORT_FORMATS.items():
        assert kinds.keys() == EXPORT_INFO[name].file_names.keys()
        for method, kind in kinds.items():
            one_file = EXPORT_INFO[name].file_names[method].endswith(".safetensors")
            assert one_file == (kind.single_file is not None)


@pytest.mark.parametrize("variant", ["lora", "lora, averaged", "lora, guided", "lora, every layer"])
@pytest.mark.parametrize("target", ["lora.safetensors", "folder"])
def test_a_lora_draws_the_gallery_in_plain_diffusers(
    trained: Train, tmp_path: Path, tiny_pipeline_folder: Path, variant: str, target: str
) -> None:
    run = trained(variant)
    report = export_run(run, "diffusers", tmp_path / "out" / target)
    assert (report.path, report.step, report.verified) == (tmp_path / "out" / target, 2, True)
    assert report.max_difference <= 2

    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder)
    base = draw(pipeline, run)
    assert difference(base, tile(run, 0)) <= 2
    pipeline.load_lora_weights(report.path)
    assert difference(draw(pipeline, run), tile(run, 2)) <= 2
    assert difference(draw(pipeline, run, 1), tile(run, 2, 1)) <= 2
    # The check means something only if the adapter, and its scale of 2, change the image.
    assert difference(base, tile(run, 2)) > 8
    pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)
    assert difference(draw(pipeline, run), tile(run, 2)) > 2


def test_a_lora_names_its_modules_as_diffusers_does(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    out = tmp_path / "lora.safetensors"
    report = export_run(run, "diffusers", out, step=1)
    tensors, own = load_file(out), load_checkpoint(run / "checkpoints/step-000001").tensors["adapter.safetensors"]
    assert tensors.keys() == {f"transformer.{key}" for key in own}
    for key, tensor in own.items():
        scale = 2 if key.endswith(".lora_B.weight") else 1  # alpha over rank: 8 over 4
        assert torch.equal(tensors[f"transformer.{key}"], scale * tensor)
    assert report.step == 1
    assert report.num_bytes == out.stat().st_size


def test_the_header_tells_what_it_is_and_how_to_make_it_again(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    out = tmp_path / "lora.safetensors"
    export_run(run, "diffusers", out)
    header = read_header(out)
    settings = from_yaml((run / "settings.yaml").read_text())
    adapter = json.loads(header["lora_adapter_metadata"])
    assert adapter["transformer.r"] == 4
    assert adapter["transformer.lora_alpha"] == 4
    assert header["format"] == "pt"
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-v3-medium/lora"
    assert header["modelspec.resolution"] == "16x16"
    assert header["modelspec.hash_sha256"] == "0x" + tensor_sha256(out)
    assert header["palate.settings_digest"] == settings.digest()
    assert header["palate.seed"] == "3"
    assert "torch" in json.loads(header["palate.versions"])
    assert RunSettings.model_validate_json(header["palate.settings"]).tuning == settings.tuning


def test_nothing_tells_the_folders_of_this_machine(trained: Train, tmp_path: Path) -> None:
    for variant, format in (("lora", "diffusers"), ("full", "diffusers")):
        run = trained(variant)
        out = tmp_path / f"out-{variant}"
        export_run(run, format, out)
        files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".png"]
        assert len(files) >= 2
        assert not any(str(tmp_path.parent).encode() in path.read_bytes() for path in files)
        shutil.rmtree(run)


def test_the_same_checkpoint_gives_the_same_file(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for out in (first, second):
        export_run(run, "diffusers", out)
    assert read_header(first) == read_header(second)
    assert tensor_sha256(first) == tensor_sha256(second)


@pytest.mark.parametrize(
    ("variant", "format"), [("full", "diffusers"), ("full, averaged", "diffusers"), ("lora", "merged")]
)
def test_a_whole_transformer_takes_the_base_ones_place(
    trained: Train, tmp_path: Path, tiny_pipeline_folder: Path, variant: str, format: str
) -> None:
    run = trained(variant)
    export_run(run, format, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as zipped:
        assert zipped.testzip() is None
        zipped.extractall(tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert names >= {"README.md", "transformer/config.json", weights, "images/000.png"}
    assert read_header(tmp_path / "out" / weights)["modelspec.sai_model_spec"] == "1.0.1"
    transformer = AutoModel.from_pretrained(str(tmp_path / "out"), subfolder="transformer")
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder, transformer=transformer)
    assert difference(draw(pipeline, run), tile(run, 2)) <= 2
    assert difference(tile(run, 0), tile(run, 2)) > 8


# The card -------------------------------------------------------------------------------------------------------------


def test_the_card_says_what_a_hub_and_a_reader_need(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    export_run(run, "diffusers", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["base_model"] == "tiny"
    assert card["base_model_relation"] == "adapter"
    assert card["library_name"] == "diffusers"
    assert card["pipeline_tag"] == "text-to-image"
    assert "lora" in card["tags"]
    assert all((tmp_path / "out" / entry["output"]["url"]).is_file() for entry in card["widget"])
    assert len(card["widget"]) == 2
    gallery = "| ![](images/000.png) | ![](images/001.png) |\n| --- | --- |\n| a blue circle | the small square |\n"
    assert gallery in body
    settings = from_yaml(body.split("```yaml\n")[1].split("```")[0])
    assert settings.tuning == from_yaml((run / "settings.yaml").read_text()).tuning
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    base, tuned = ({e["step"]: e for e in events if e["kind"] == "samples"}[step] for step in (0, 2))
    before, after = base["rewards"]["vividness"], tuned["rewards"]["vividness"]
    change = (after - before) / statistics.stdev(image["rewards"]["vividness"] for image in base["images"])
    assert f"| vividness | {before:.3f} | {after:.3f} | {change:+.2f} |" in body


def test_the_cards_code_draws_the_galleries_first_tile(
    trained: Train, tmp_path: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("lora")
    export_run(run, "diffusers", tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    shutil.copytree(tiny_pipeline_folder, tmp_path / "out" / "tiny")
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {}
    exec(code, names)
    assert difference(np.asarray(names["image"]), tile(run, 2)) <= 2


def test_the_card_of_a_single_file_lies_beside_it(trained: Train, tmp_path: Path) -> None:
    export_run(trained("lora"), "diffusers", tmp_path / "out" / "mine.safetensors")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine.safetensors", "mine.md"}
    assert "widget" not in (tmp_path / "out" / "mine.md").read_text()


def test_a_step_that_was_not_evaluated_is_exported_all_the_same(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    report = export_run(run, "diffusers", tmp_path / "out", step=1)
    assert "gallery" not in report.text
    assert "not evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_resumed_in_a_new_folder_needs_no_events(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    (run / "events.jsonl").unlink()
    assert export_run(run, "diffusers", tmp_path / "lora.safetensors").max_difference <= 2


def test_what_does_not_fit_one_file_becomes_an_archive(trained: Train, tmp_path: Path) -> None:
    report = export_run(trained("full"), "diffusers", tmp_path / "out" / "tuned.safetensors")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tuned.zip"]
    assert report.path == tmp_path / "out" / "tuned.zip"
    assert "is in tuned.zip" in report.text


def test_an_export_says_nothing_but_its_report(
    trained: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = trained("lora")
    capfd.readouterr()
    caplog.clear()
    export_run(run, "diffusers", tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert diffusers_logging.is_progress_bar_enabled()


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "format", "out", "step", "sentence"),
    [
        ("lora", "webui", "x.zip", None, "There is no export format 'webui'; choose one of: diffusers, comfyui, kohya"),
        ("full", "kohya", "x.zip", None, "kohya LoRA: this run tuned all weights"),
        ("lora", "diffusers", "x.zip", 7, "no checkpoint of step 7; there are checkpoints of the steps 1, 2"),
        ("lora", "diffusers", "run", None, "already there"),
        ("lora", "diffusers", "run/settings.yaml", None, "already there"),
    ],
)
def test_what_cannot_be_exported_is_said(
    trained: Train, tmp_path: Path, variant: str, format: str, out: str, step: int | None, sentence: str
) -> None:
    run = trained(variant)
    with pytest.raises((ExportError, CheckpointError), match=sentence):
        export_run(run, format, tmp_path / out, step)


def test_a_run_without_checkpoints_says_so(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="no whole checkpoint yet"):
        export_run(run, "diffusers", tmp_path / "x.zip")


def test_a_damaged_checkpoint_is_passed_over_unless_asked_for(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    file = run / "checkpoints/step-000002/adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert export_run(run, "diffusers", tmp_path / "x.zip").step == 1
    with pytest.raises(CheckpointError, match="damaged"):
        export_run(run, "diffusers", tmp_path / "y.zip", step=2)


@pytest.mark.parametrize("out", ["x.safetensors", "x.zip", "x"])
def test_an_export_that_draws_other_images_is_not_kept(
    trained: Train, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("lora")
    # The file's scale is wrong.
    real = diffusers_lora.adapter_metadata
    monkeypatch.setattr(
        diffusers_lora, "adapter_metadata", lambda source: real(source) | {"transformer.lora_alpha": 8.0}
    )
    with pytest.raises(ExportError, match="was not kept: diffusers draws other images"):
        export_run(run, "diffusers", tmp_path / "out" / out)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_gallery_that_shows_something_else_is_noticed(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    path = run / "samples/step-000002/000.png"
    Image.fromarray(tile(run, 2) ^ 0x10).save(path)
    with pytest.raises(ExportError, match="than the gallery shows"):
        export_run(run, "diffusers", tmp_path / "x.zip")


def test_a_gallery_from_another_device_is_compared_but_not_judged(trained: Train, tmp_path: Path) -> None:
    run = trained("lora")
    Image.fromarray(tile(run, 2) ^ 0x10).save(run / "samples/step-000002/000.png")
    events = (run / "events.jsonl").read_text().replace('"device":"CPU"', '"device":"A GPU"')
    (run / "events.jsonl").write_text(events)
    report = export_run(run, "diffusers", tmp_path / "x.zip")
    assert "the gallery's tiles to within 16 of 255." in report.text
    assert report.max_difference <= 2


def test_images_of_other_shapes_differ_wholly() -> None:
    assert verification._difference(np.zeros((1, 2, 2, 3)), np.zeros((1, 4, 4, 3))) == 255
