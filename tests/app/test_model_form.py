"""A model of one's own on the new-run page: found, chosen, suited, refused in words, and launched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

from engine.builtin import WEIGHTS
from engine.catalogue import MODEL_INFO
from engine.settings import RunSettings
from store.presence import worker_seen
from store.runs import get_run, list_runs
from tests.app.conftest import Workbench
from tests.app.test_pages import button, open_page, text_of
from tests.engine.models.hub_folders import COMMIT, put_in_cache

FLUX, SD3 = MODEL_INFO["flux"].title, MODEL_INFO["sd3"].title


def put_model(folder: Path, pipeline: str, **transformer: Any) -> Path:
    """A copy of the built-in model that says it is another: all that is read of it before a run are its headers."""
    shutil.copytree(WEIGHTS, folder)
    for file, changes in (("model_index.json", {"_class_name": pipeline}), ("transformer/config.json", transformer)):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def models(workbench: Workbench) -> Path:
    """The model folder: two of FLUX.1, one of Stable Diffusion 3, a LoRA, and a FLUX.1 that is not whole."""
    root = workbench.config.model_roots[0]
    put_model(root / "dev", "FluxPipeline", guidance_embeds=True)
    put_model(root / "deep" / "schnell", "FluxPipeline", guidance_embeds=False)
    put_model(root / "sd", "StableDiffusion3Pipeline")
    half = put_model(root / "half", "FluxPipeline")
    next((half / "transformer").glob("*.safetensors")).unlink()
    save_file({"a.lora_A.weight": torch.zeros(1, 2), "a.lora_B.weight": torch.zeros(2, 1)}, root / "mine.safetensors")
    return root


def field(kind: Any, label: str) -> Any:
    return next(found for found in kind if found.label == label)


def value(at: AppTest, label: str) -> Any:
    return field([*at.number_input, *at.selectbox], label).value


def newest(workbench: Workbench) -> RunSettings:
    with workbench.database.read() as session:
        run = get_run(session, list_runs(session)[0].id)
    assert run is not None
    return run.settings


def test_a_family_brings_its_defaults_and_its_folders(workbench: Workbench, models: Path) -> None:
    at = open_page("new_run")
    assert field(at.selectbox, "Model").options == [info.title for info in MODEL_INFO.values()]
    assert "Starting point" not in {found.label for found in at.selectbox}
    field(at.selectbox, "Model").select("flux").run()
    assert not at.error
    words = text_of(at)
    assert "12 billion weights" in words and "FLUX.1 [dev] Non-Commercial" in words
    assert "the model's own grid, with gradient checkpointing; the gallery is drawn in 4 steps" in words
    assert "of GPU memory with one image at a time" in words
    labels = field(at.selectbox, "Pipeline folder").options
    assert [label.split(" · ")[0] for label in labels] == ["deep/schnell", "dev", "half"]
    assert labels[2] == "half · not whole"
    assert all(not option.startswith("Built-in") for option in field(at.radio, "Start from").options)

    # The first is schnell, which is distilled.
    assert (value(at, "Guidance in training"), value(at, "Denoising steps")) == (1.0, 4)
    field(at.selectbox, "Pipeline folder").select(str(models / "dev")).run()
    assert (value(at, "Guidance in training"), value(at, "Guidance in the gallery")) == (3.5, 3.5)
    assert "a grid shifted by 3, with gradient checkpointing; the gallery is drawn in 28 steps" in text_of(at)
    assert (value(at, "Denoising steps"), value(at, "Precision")) == (25, "bfloat16")


def test_precision_suits_the_workers(workbench: Workbench, models: Path) -> None:
    for devices, precision in ((["cpu"], "float32"), (["cpu", "cuda:0"], "bfloat16")):
        with workbench.database.write() as session:
            for device in devices:
                worker_seen(session, device, host="here", device=device)
        at = open_page("new_run", model="flux", folder=str(models / "dev"))
        assert value(at, "Precision") == precision


def test_a_model_is_launched_and_made_again(workbench: Workbench, models: Path) -> None:
    at = open_page("new_run", model="flux", folder=str(models / "dev"))
    field(at.selectbox, "Starting point").select(str(models / "mine.safetensors"))
    field(at.number_input, "Pixels a side").set_value(720)
    field(at.selectbox, "Precision").select("bfloat16").run()
    button(at, "Start the run").click().run()
    assert not at.error, at.error
    settings = newest(workbench)
    assert settings.model.model_dump(exclude_defaults=True) == {
        "name": "flux", "folder": str(models / "dev"), "start_from": str(models / "mine.safetensors"),
        "resolution": 720, "precision": "bfloat16",
    }  # fmt: skip
    assert (settings.sampling.guidance_scale, settings.evaluation.num_steps) == (3.5, 28)

    with workbench.database.read() as session:
        run_id = list_runs(session)[0].id
    again = open_page("new_run", like=run_id)
    button(again, "Start the run").click().run()
    assert not again.error
    assert newest(workbench) == settings

    shutil.rmtree(models / "dev")
    st.cache_data.clear()  # the folders are looked through every ten seconds
    gone = open_page("new_run", like=run_id)
    assert field(gone.selectbox, "Pipeline folder").options[-1] == "dev · not found"
    assert "dev, which is not there" in gone.error[0].value
    assert button(gone, "Start the run").disabled
    field(gone.selectbox, "Model").select("sd3").run()
    assert not gone.error
    assert value(gone, "Guidance in training") == 4.5


def test_what_is_wrong_is_said_before_the_launch(workbench: Workbench, models: Path) -> None:
    at = open_page("new_run", model="flux", folder=str(models / "half"))
    assert "half is not whole: transformer/" in at.error[0].value
    assert button(at, "Start the run").disabled
    at = open_page("new_run", model="flux", folder=str(models / "deep" / "schnell"))
    field(at.number_input, "Guidance in training").set_value(3.5).run()
    assert "schnell is distilled and takes none" in at.error[0].value
    at = open_page("new_run", model="qwen_image")
    assert "No pipeline of Qwen-Image was found" in at.info[0].value
    assert "Found there: FLUX.1" in at.info[0].value
    assert "Choose weights of Qwen-Image" in at.error[0].value


def test_settings_as_text_name_models_too(workbench: Workbench, models: Path, tmp_path: Path) -> None:
    at = open_page("new_run")
    field(at.toggle, "Advanced: edit all settings as text").set_value(True).run()
    for text, says in (
        ("model: {name: sd3, folder: /etc}", "model.folder names /etc, outside the model folders of this workbench"),
        ("model: {name: sd3, folder: ../palate.db}", "outside the model folders"),
        ("model: {name: sd3, folder: dev}", "dev holds a FluxPipeline, but sd3 needs a StableDiffusion3Pipeline"),
        ("model: {name: sd3, folder: sd, start_from: /etc/passwd}", "model.start_from names /etc/passwd, outside"),
    ):
        at.text_area[0].set_value(text).run()
        assert says in at.error[0].value
        assert button(at, "Start the run").disabled
    data = b"iterations: 7\nmodel: {name: sd3, folder: sd, start_from: mine.safetensors}\n"
    at.file_uploader[0].upload("settings.yaml", data, "application/yaml").run()
    assert not at.error
    button(at, "Start the run").click().run()
    settings = newest(workbench)
    assert (settings.iterations, settings.model.folder) == (7, str(models / "sd"))
    assert settings.model.start_from == str(models / "mine.safetensors")
    at.switch_page("views/new_run.py").run()
    field(at.toggle, "Advanced: edit all settings as text").set_value(True).run()
    at.file_uploader[0].upload("settings.yaml", b"iterations: \xff", "application/yaml").run()
    assert "not UTF-8 text (byte 12)" in at.error[0].value


def test_a_hub_model_is_looked_up_and_pinned(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    put_in_cache(tmp_path / "hub", "org/flux", put_model(tmp_path / "flux", "FluxPipeline", guidance_embeds=True))
    at = open_page("new_run", model="flux", weights="hub")
    assert "Such as `black-forest-labs/FLUX.1-dev`" in text_of(at)
    for wrong, says in (("flux", "looks like OWNER/NAME"), ("org/absent", "the hub cannot be reached")):
        field(at.text_input, "Name on the hub").set_value(wrong).run()
        if not button(at, "Start the run").disabled:
            assert "it is downloaded first" in text_of(at)
            button(at, "Start the run").click().run()
        assert says in at.error[0].value
    field(at.text_input, "Name on the hub").set_value("org/flux").run()
    assert "of GPU memory with one image at a time" in text_of(at)
    button(at, "Start the run").click().run()
    assert not at.error, at.error
    assert newest(workbench).model.model_dump(include={"hub_id", "revision"}) == {
        "hub_id": "org/flux", "revision": COMMIT,
    }  # fmt: skip


def test_the_operator_may_forbid_the_hub(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALATE_HUB_MODELS", "none")
    at = open_page("new_run", model="flux")
    assert field(at.radio, "Weights").options == ["A folder here"]
    field(at.toggle, "Advanced: edit all settings as text").set_value(True).run()
    at.text_area[0].set_value("model: {name: flux, hub_id: org/name}").run()
    assert "names org/name of the hub, and of those none may be used here" in at.error[0].value
