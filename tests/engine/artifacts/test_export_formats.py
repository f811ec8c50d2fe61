"""ComfyUI's and kohya's files, whole pipelines, rounded weights: exports of real (tiny) runs draw the gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from engine.artifacts.export import ExportError, export_run, lora_reader, published_lora
from engine.artifacts.export.header import read_header
from tests.engine.artifacts.pictures import difference, draw, tile

STRONG = {"optimiser": {"learning_rate": 3e-2}}  # so that a wrong scale shows in the images
SMALL_ALPHA = {"tuning": {"rank": 4, "alpha": 8.0}} | STRONG
EVERY_LAYER = {"tuning": {"rank": 32, "alpha": 12.0, "layers": "all"}} | STRONG
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": SMALL_ALPHA,
    "full": {"tuning": {"method": "full"}, "optimiser": {"learning_rate": 3e-3}},
}


@pytest.mark.parametrize("changes", [SMALL_ALPHA, EVERY_LAYER], ids=["blocks, rank 4", "every layer, rank 32"])
@pytest.mark.parametrize("family", ["builtin", "flux"])
def test_comfyui_and_kohya_files_draw_the_gallery(
    tiny_run: Callable[..., Path],
    tiny_flux_folders: dict[str, Path],
    tmp_path: Path,
    family: str,
    changes: dict[str, Any],
) -> None:
    flux = {"model": {"name": "flux", "folder": str(tiny_flux_folders["dev"]), "resolution": 32}}
    run = tiny_run(**changes, **(flux if family == "flux" else {}))
    for format in ("comfyui", "kohya"):
        report = export_run(run, format, tmp_path / f"{format}.safetensors")
        assert report.max_difference <= 2
        assert "published names, change every weight as the checkpoint does" in report.text
        assert "and the gallery's tiles" in report.text
    assert difference(tile(run, 0), tile(run, 2)) > 8
    header = read_header(tmp_path / "kohya.safetensors")
    architecture = {"builtin": "stable-diffusion-v3-medium/lora", "flux": "flux-1-dev/lora"}[family]
    assert header["modelspec.architecture"] == architecture
    assert header["palate.base_revision"].startswith("sha256:")


def test_a_lost_scale_shows_in_the_images(
    tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(**SMALL_ALPHA)
    real = lora_reader.LoraFile.delta

    def without_alpha(file: Any, name: str) -> Any:
        delta = real(file, name)
        return None if delta is None else delta / 2

    monkeypatch.setattr(lora_reader.LoraFile, "delta", without_alpha)
    monkeypatch.setattr(published_lora, "weight_difference", lambda *_: 0.0)
    with pytest.raises(ExportError, match="was not kept: diffusers draws other images"):
        export_run(run, "comfyui", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("variant", ["lora", "full"])
def test_a_whole_pipeline_needs_nothing_else(tiny_run: Callable[..., Path], tmp_path: Path, variant: str) -> None:
    run = tiny_run(**VARIANTS[variant])
    report = export_run(run, "pipeline", tmp_path / "pipeline")
    assert "without the base model" in report.text
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "pipeline")
    assert difference(draw(pipeline, run), tile(run, 2)) <= 2
    weights = tmp_path / "pipeline/transformer/diffusion_pytorch_model.safetensors"
    assert read_header(weights)["modelspec.architecture"] == "stable-diffusion-v3-medium"
    texts = [path for path in (tmp_path / "pipeline").rglob("*.json") if "tokenizer" not in path.parts]
    assert not any(str(tmp_path.parent) in path.read_text() for path in texts)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("variant", "format"),
    [("lora", "diffusers"), ("lora", "comfyui"), ("lora", "kohya"), ("lora", "merged"), ("full", "pipeline")],
)
def test_a_rounded_export_is_checked_against_rounded_weights(
    tiny_run: Callable[..., Path], tmp_path: Path, variant: str, format: str, precision: Any
) -> None:
    run = tiny_run(**VARIANTS[variant])
    report = export_run(run, format, tmp_path / "out", precision=precision)
    assert report.max_difference <= 2
    assert f"its weights rounded to {precision}," in report.text
    file = max((tmp_path / "out").rglob("*.safetensors"), key=lambda path: "transformer" in path.parts)
    kept = {tensor.dtype for key, tensor in load_file(file).items() if not key.endswith(".alpha")}
    assert kept == {getattr(torch, precision)}
