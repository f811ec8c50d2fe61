"""Drawing with checkpoints: the gallery's own images, hybrid inference to the bit, refusals in sentences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from engine.inference import Source, draw_images, drawing_settings, generate, open_source
from engine.reports import GENERATION_NAME, Generation
from engine.requests import GenerationRequest

TinyRun = Callable[..., Path]
PROMPTS = ("a red circle", "the small blue star", "a green square")
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, averaged": {"optimiser": {"learning_rate": 3e-2, "ema_decay": 0.5}},
    "full": {"tuning": {"method": "full"}, "optimiser": {"learning_rate": 3e-3}},
}


def request(run: Path, out: Path, **changes: Any) -> GenerationRequest:
    return GenerationRequest.model_validate({"run": run, "out": out, "prompts": PROMPTS} | changes)


def silent(name: str, done: int, total: int) -> None:
    pass


def drawn(run: Path, out: Path, **changes: Any) -> np.ndarray:
    generation = generate(request(run, out, **changes), silent)
    return np.stack([np.asarray(Image.open(out / image.path)) for image in generation.images])


def base_images(run: Path, out: Path) -> np.ndarray:
    """The base model's, from a source without any tuned weights."""
    source = open_source(run, None, 1.0)
    drawing = drawing_settings(request(run, out), source)
    return np.concatenate(list(draw_images(Source(source.settings, None, 0.0), PROMPTS, drawing)))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_hybrid_ends_are_the_tuned_and_the_base_model_to_the_bit(
    tiny_run: TinyRun, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = tiny_run(**changes)
    tuned, base = drawn(run, tmp_path / "tuned"), base_images(run, tmp_path)
    assert np.array_equal(drawn(run, tmp_path / "one", hybrid=1.0), tuned)
    assert np.array_equal(drawn(run, tmp_path / "zero", hybrid=0.0), base)
    # The ends mean something only if the weights matter, and the middle only if both take part.
    between = drawn(run, tmp_path / "half", hybrid=0.5)
    for one, other in ((tuned, base), (between, tuned), (between, base)):
        assert np.abs(one.astype(int) - other.astype(int)).max() > 2
    # 0.6 and 0.5 of four steps are the same two steps; 0.63 is three.
    assert np.array_equal(drawn(run, tmp_path / "same", hybrid=0.6), between)
    assert not np.array_equal(drawn(run, tmp_path / "more", hybrid=0.63), between)


def test_hybrid_ends_hold_for_another_family(
    tiny_run: TinyRun, tmp_path: Path, tiny_flux_folders: dict[str, Path]
) -> None:
    run = tiny_run(model={"name": "flux", "folder": str(tiny_flux_folders["dev"]), "resolution": 16})
    tuned, base = drawn(run, tmp_path / "tuned"), base_images(run, tmp_path)
    assert tuned.shape == (3, 16, 16, 3)
    assert np.array_equal(drawn(run, tmp_path / "zero", hybrid=0.0), base)
    assert not np.array_equal(tuned, base)


@pytest.mark.parametrize(("share", "num_tuned"), [(0.0, 0), (0.3, 1), (0.5, 2), (0.9, 4), (1.0, 4)])
def test_the_transformer_is_tuned_for_just_so_many_steps(
    tiny_run: TinyRun, tmp_path: Path, share: float, num_tuned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted inside the model: which forwards a LoRA layer adds its product to."""
    from peft.tuners.lora import Linear

    run = tiny_run()
    counted: dict[int, list[bool]] = {}
    forward = Linear.forward

    def counting(layer: Any, *inputs: Any, **named: Any) -> torch.Tensor:
        counted.setdefault(id(layer), []).append(not layer.disable_adapters)
        return forward(layer, *inputs, **named)

    monkeypatch.setattr(Linear, "forward", counting)
    drawn(run, tmp_path / "out", hybrid=share, num_steps=4)
    assert counted
    assert all(tuned == [step < num_tuned for step in range(4)] for tuned in counted.values())


def test_a_checkpoint_draws_its_gallery(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The same prompt, seed and settings give the tile of the run's own evaluation, its averaged weights included."""
    run = tiny_run(optimiser={"learning_rate": 3e-2, "ema_decay": 0.5})
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    tiles = [event for event in events if event["kind"] == "samples"][-1]["images"]
    images = drawn(run, tmp_path / "out", prompts=[tile["prompt"] for tile in tiles])
    for tile, image in zip(tiles, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(run / tile["path"])), image)


def test_images_follow_seed_and_place_whatever_the_batch(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run(compute={"device": "cpu", "num_threads": 1, "micro_batch": 2})
    images = drawn(run, tmp_path / "three", seed=40)
    alone = drawn(run, tmp_path / "one", seed=42, prompts=PROMPTS[2:])
    assert np.abs(images[2].astype(int) - alone[0].astype(int)).max() <= 1


def test_the_base_is_what_plain_diffusers_draws(tiny_run: TinyRun, tmp_path: Path, tiny_pipeline_folder: Path) -> None:
    run = tiny_run()
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    plain = pipeline(
        PROMPTS[0], num_inference_steps=4, guidance_scale=1.0, generator=torch.Generator("cpu").manual_seed(1000)
    ).images[0]
    image = drawn(run, tmp_path / "out", hybrid=0.0)[0]
    assert np.abs(np.asarray(plain).astype(int) - image.astype(int)).max() <= 1


def test_a_report_says_how_to_draw_it_again(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run(optimiser={"learning_rate": 3e-2, "ema_decay": 0.5})
    out = tmp_path / "out"
    images = drawn(run, out, hybrid=0.5, guidance_scale=2.0, step=1)
    report = Generation.model_validate_json((out / GENERATION_NAME).read_text())
    assert (report.model.step, report.model.averaged, report.model.num_tuned_steps) == (1, True, 2)
    assert report.model.name == "run, step 1, tuned for 2 of 4 steps"
    assert (report.drawing.seed, report.drawing.num_steps, report.drawing.guidance_scale) == (1000, 4, 2.0)
    assert [(image.prompt, image.seed) for image in report.images] == [(p, 1000 + i) for i, p in enumerate(PROMPTS)]
    assert report.versions["torch"] == report.model.trained_with["torch"]
    again = report.request.model_copy(update={"out": tmp_path / "again"})
    repeated = generate(again, silent)
    assert all(
        np.array_equal(np.asarray(Image.open(tmp_path / "again" / image.path)), images[i])
        for i, image in enumerate(repeated.images)
    )


def test_progress_is_told_batch_by_batch(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run(compute={"device": "cpu", "num_threads": 1, "micro_batch": 2})
    told: list[tuple[str, int, int]] = []
    generate(request(run, tmp_path / "out"), lambda *progress: told.append(progress))
    assert told == [("run, step 2", 2, 3), ("run, step 2", 3, 3)]


# Refusals -------------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    drawn(run, tmp_path / "out")
    with pytest.raises(ValueError, match=r"already holds generation\.json"):
        drawn(run, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        drawn(run, tmp_path / "file")


def test_a_base_model_that_is_gone_is_said(tiny_run: TinyRun, tmp_path: Path, tiny_pipeline_folder: Path) -> None:
    pipeline = shutil.copytree(tiny_pipeline_folder, tmp_path / "pipeline")
    run = tiny_run(iterations=1, model={"folder": str(pipeline)})
    shutil.rmtree(pipeline)
    with pytest.raises(ValueError, match="is not a diffusers pipeline folder"):
        drawn(run, tmp_path / "out")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_of_another_base_model_are_refused(
    tiny_run: TinyRun, tmp_path: Path, tiny_pipeline_folder: Path, method: str
) -> None:
    """The folder of the base model now holds a wider one."""
    from diffusers import SD3Transformer2DModel

    pipeline = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "pipeline"))
    run = tiny_run(iterations=1, model={"folder": str(pipeline)}, tuning={"method": method, "rank": 4})
    config = SD3Transformer2DModel.load_config(pipeline / "transformer")
    wider = SD3Transformer2DModel.from_config(config, attention_head_dim=12, caption_projection_dim=24)
    wider.save_pretrained(pipeline / "transformer")
    with pytest.raises(ValueError, match="These weights are not of this model"):
        drawn(run, tmp_path / "out")
    assert not (tmp_path / "out" / GENERATION_NAME).exists()


def test_the_gpu_that_is_not_there_is_said(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = tiny_run()
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        drawn(run, tmp_path / "out", device="cuda")
