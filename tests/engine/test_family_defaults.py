"""Settings for every family, from every preset: valid, and what its users draw with."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import diffusers
import pytest

from engine.catalogue import MODEL_INFO
from engine.family_defaults import for_family, is_distilled
from engine.presets import PRESETS
from engine.settings import ModelName, RunSettings
from tests.engine.models.families import FAMILIES

PUBLISHED = [name for name, info in MODEL_INFO.items() if info.needs_folder]


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_preset_suits_every_family(name: ModelName, distilled: bool) -> None:
    info = MODEL_INFO[name]
    usual = info.distilled if distilled and info.distilled else info.usual
    for preset in PRESETS.values():
        before = preset.make()
        settings = for_family(before, name, distilled=distilled, precision="bfloat16")
        assert settings.model.model_dump(exclude_defaults=True) == {"name": name, "precision": "bfloat16"}
        assert settings.sampling.guidance_scale == settings.evaluation.guidance_scale == usual.guidance_scale
        assert (settings.evaluation.num_steps, settings.sampling.num_steps) == (usual.num_steps, usual.training_steps)
        assert settings.window.size == min(before.window.size, usual.training_steps - 1)
        assert settings.tuning.gradient_checkpointing and settings.tuning.layers == "blocks"
        assert "composition" not in {reward.name for reward in settings.rewards}
        assert (settings.method, settings.iterations, settings.grpo) == (before.method, before.iterations, before.grpo)


def test_the_built_in_model_takes_a_preset_as_it_is() -> None:
    for preset in PRESETS.values():
        settings = for_family(preset.make(), "builtin", precision="float32")
        assert settings.model == RunSettings().model
        assert settings == preset.make().model_copy(update={"model": settings.model})


@pytest.mark.parametrize("name", PUBLISHED)
def test_finished_images_take_the_plain_pipelines_steps(name: ModelName) -> None:
    call = inspect.signature(getattr(diffusers, MODEL_INFO[name].pipelines[0]).__call__)
    assert MODEL_INFO[name].usual.num_steps == call.parameters["num_inference_steps"].default


@pytest.mark.parametrize(
    ("family", "distilled"),
    [("Z-Image", False), ("Z-Image Turbo", True), ("HunyuanImage", False), ("HunyuanImage distilled", True),
     ("FLUX.2 klein base", False), ("SD3", False)],
)  # fmt: skip
def test_distilled_models_are_told_by_their_files(family: str, distilled: bool, tmp_path: Path) -> None:
    pipeline = FAMILIES[family].make()
    pipeline.save_config(tmp_path)
    for part in ("transformer", "scheduler"):
        getattr(pipeline, part).save_config(tmp_path / part)
    assert is_distilled(tmp_path, FAMILIES[family].name) is distilled
    if family == "FLUX.2 klein base":
        index = tmp_path / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
        assert is_distilled(tmp_path, "flux2_klein")


@pytest.mark.parametrize(("variant", "distilled"), [("dev", False), ("schnell", True)])
def test_schnell_is_told_from_dev(tiny_flux_folders: dict[str, Path], variant: str, distilled: bool) -> None:
    assert is_distilled(tiny_flux_folders[variant], "flux") is distilled
