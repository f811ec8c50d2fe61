"""The FLUX.1 adapter against the plain diffusers pipeline: images, grid, training, resumption, exports."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from engine.artifacts.checkpoint import load_checkpoint
from engine.artifacts.export import export_run
from engine.artifacts.export.header import read_header
from engine.events import Event, IterationDone
from engine.models import load_model
from engine.sampling.rollout import sample_ode
from engine.settings import ModelSettings, RunSettings
from engine.train import train
from engine.tuning import make_trainable
from tests.engine.training import train_in

PROMPTS = ["a red circle", "a blue star left of a green square"]
SIDE = 32
LORA: dict[str, Any] = {"method": "lora", "rank": 4, "alpha": 8.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {"tuning": LORA},
    "LoRA on every layer": {"tuning": LORA | {"layers": "all"}},
    "full": {"tuning": {"method": "full"}, "optimiser": {"learning_rate": 3e-3}},
}


def settings_of(folder: Path, **changes: Any) -> ModelSettings:
    return ModelSettings.model_validate({"name": "flux", "folder": str(folder), "resolution": SIDE} | changes)


def run_settings(base: RunSettings, folder: Path, changes: dict[str, Any]) -> RunSettings:
    """Two iterations of two images of two prompts, with dev's guidance and the grid that the family brings."""
    own = {
        "iterations": 2,
        "model": settings_of(folder).model_dump(),
        "sampling": {"num_steps": 5, "shift": "model", "guidance_scale": 3.5},
        "grpo": {"prompts_per_iteration": 2, "group_size": 2, "updates_per_iteration": 2},
        "evaluation": {"every": 2, "num_prompts": 1, "num_steps": 3, "guidance_scale": 3.5},
        "checkpoints": {"every": 1},
        "optimiser": {"learning_rate": 3e-2},
    }
    return RunSettings.model_validate(base.model_dump() | own | changes)


def call(pipeline: Any, prompts: str | list[str], num_steps: int, guidance_scale: float, seed: int) -> np.ndarray:
    """uint8 images of a plain pipeline call."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompts, num_inference_steps=num_steps, guidance_scale=guidance_scale, height=SIDE, width=SIDE,
        generator=torch.Generator().manual_seed(seed),
    ).images  # fmt: skip
    return np.stack([np.asarray(image) for image in images])


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize(("name", "guidance_scale"), [("dev", 1.0), ("dev", 3.5), ("schnell", 1.0)])
def test_draws_what_the_plain_pipeline_call_draws(
    tiny_flux_folders: dict[str, Path], name: str, guidance_scale: float
) -> None:
    expected = call(FluxPipeline.from_pretrained(tiny_flux_folders[name]), PROMPTS, 6, guidance_scale, seed=7)

    model = load_model(settings_of(tiny_flux_folders[name]))
    embeddings = model.encode(PROMPTS)
    latents = sample_ode(
        lambda x, sigma, rows: model.velocity(x, sigma, embeddings, rows, guidance_scale).detach(),
        model.noise(torch.Generator().manual_seed(7), len(PROMPTS)), torch.arange(len(PROMPTS)),
        tuple(model.sigmas(6).tolist()), micro_batch=1,
    )  # fmt: skip
    drawn = model.decode(latents)
    assert difference(drawn, expected) <= 1
    assert drawn.std() > 5, "the random model draws something to compare"
    assert difference(expected[0], expected[1]) > 5, "and it heeds the prompt, the noise or both"


def test_guidance_is_an_input_of_dev(tiny_flux_folders: dict[str, Path]) -> None:
    model = load_model(settings_of(tiny_flux_folders["dev"]))
    embeddings = model.encode(PROMPTS[:1])
    assert embeddings.empty is None
    noise, row = model.noise(torch.Generator().manual_seed(0), 1), torch.zeros(1, dtype=torch.long)
    weak, strong = (model.velocity(noise, 0.8, embeddings, row, scale).detach() for scale in (1.0, 3.5))
    assert (weak - strong).abs().max() > 1e-3


def test_schnell_takes_no_guidance(tiny_flux_folders: dict[str, Path]) -> None:
    model = load_model(settings_of(tiny_flux_folders["schnell"]))
    embeddings = model.encode(PROMPTS[:1])
    with pytest.raises(ValueError, match="takes none"):
        model.velocity(model.noise(torch.Generator(), 1), 0.8, embeddings, torch.zeros(1, dtype=torch.long), 3.5)


def test_noise_is_the_pipelines_own(tiny_flux_folders: dict[str, Path]) -> None:
    pipeline = FluxPipeline.from_pretrained(tiny_flux_folders["dev"])
    packed, _ = pipeline.prepare_latents(
        3, 4, SIDE, SIDE, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(5)
    )
    noise = load_model(settings_of(tiny_flux_folders["dev"])).noise(torch.Generator().manual_seed(5), 3)
    assert torch.equal(FluxPipeline._pack_latents(noise, 3, 4, 16, 16), packed)


def test_without_a_resolution_it_is_the_pipelines(tiny_flux_folders: dict[str, Path]) -> None:
    model = load_model(settings_of(tiny_flux_folders["dev"], resolution=None))
    assert model.noise(torch.Generator(), 1).shape == (1, 4, 128, 128)


@pytest.mark.parametrize(("side", "mu"), [(64, 0.5), (160, 0.5 + 0.65 * (1600 - 256) / (4096 - 256)), (256, 1.15)])
def test_devs_grid_is_shifted_by_the_number_of_tokens(
    tiny_flux_folders: dict[str, Path], side: int, mu: float
) -> None:
    """By the published line, from μ = 0.5 at 256 tokens to 1.15 at 4096; here a token is 4×4 pixels."""
    model = load_model(settings_of(tiny_flux_folders["dev"], resolution=side))
    times = [1 - i / 5 for i in range(5)]
    expected = [math.exp(mu) / (math.exp(mu) + 1 / time - 1) for time in times] + [0.0]
    assert model.sigmas(5).tolist() == pytest.approx(expected, abs=1e-6)


def test_schnells_grid_is_not_shifted(tiny_flux_folders: dict[str, Path]) -> None:
    grid = load_model(settings_of(tiny_flux_folders["schnell"])).sigmas(4)
    assert grid.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_a_folder_of_another_family_is_refused(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a StableDiffusion3Pipeline, but flux needs a FluxPipeline"):
        load_model(settings_of(tiny_pipeline_folder))


@pytest.mark.parametrize("changes", [VARIANTS["LoRA"], VARIANTS["full"]], ids=["LoRA", "full"])
def test_training_is_on_policy_and_resumes_to_the_bit(
    tiny_settings: RunSettings, tiny_flux_folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = run_settings(tiny_settings, tiny_flux_folders["dev"], changes)
    straight: list[Event] = []
    train(settings, tmp_path / "straight", straight.append)
    done = [event for event in straight if isinstance(event, IterationDone)]
    assert [event.num_trained_steps for event in done] == [8, 8]
    assert max(event.ratio_drift for event in done) <= 1e-5

    first: list[Event] = []
    train(
        settings, tmp_path / "halves", first.append,
        should_stop=lambda: any(isinstance(event, IterationDone) for event in first),
    )  # fmt: skip
    train(
        settings, tmp_path / "halves", lambda _: None,
        checkpoint=load_checkpoint(tmp_path / "halves" / "checkpoints" / "step-000001"),
    )  # fmt: skip
    ours, theirs, before = (
        load_checkpoint(tmp_path / name / "checkpoints" / step).tensors
        for name, step in (("halves", "step-000002"), ("straight", "step-000002"), ("straight", "step-000001"))
    )
    weights = next(name for name in theirs if name != "optimiser.safetensors")
    assert any(not torch.equal(theirs[weights][key], before[weights][key]) for key in before[weights])
    for file, tensors in theirs.items():
        assert all(torch.equal(ours[file][key], tensor) for key, tensor in tensors.items()), file


def test_gradient_checkpointing_changes_no_weight(
    tiny_settings: RunSettings, tiny_flux_folders: dict[str, Path], tmp_path: Path
) -> None:
    adapters = []
    for checkpointing in (False, True):
        changes = {"iterations": 1, "tuning": LORA | {"gradient_checkpointing": checkpointing}}
        out = tmp_path / str(checkpointing)
        train(run_settings(tiny_settings, tiny_flux_folders["dev"], changes), out, lambda _: None)
        adapters.append(load_checkpoint(out / "checkpoints" / "step-000001").tensors["adapter.safetensors"])
    assert all(torch.equal(adapters[1][key], tensor) for key, tensor in adapters[0].items())


def test_a_lora_adapts_both_kinds_of_blocks(tiny_settings: RunSettings, tiny_flux_folders: dict[str, Path]) -> None:
    model = load_model(settings_of(tiny_flux_folders["dev"]))
    names = make_trainable(model, tiny_settings.tuning, 0, keep_base=False).parameters
    adapted = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
    assert len(adapted) == 2 * 12 + 2 * 3
    assert {"transformer_blocks.1.ff_context.net.2", "single_transformer_blocks.0.attn.to_v"} <= adapted


def test_in_bfloat16_frozen_weights_are_small_and_trained_ones_precise(
    tiny_settings: RunSettings, tiny_flux_folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = run_settings(tiny_settings, tiny_flux_folders["dev"], {"tuning": LORA, "iterations": 1})
    settings = settings.model_copy(update={"model": settings_of(tiny_flux_folders["dev"], precision="bfloat16")})
    model = load_model(settings.model)
    trained = make_trainable(model, settings.tuning, 0, keep_base=False).parameters
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in model.transformer.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert trained
    # The same run by its adapter alone, so in float32: the gradients, and so Adam's first step, mostly agree.
    signs = []
    for precision in ("bfloat16", "float32"):
        out = tmp_path / precision
        same = settings.model_copy(update={"model": settings_of(tiny_flux_folders["dev"], precision=precision)})
        train(same, out, lambda _: None)
        adapter = load_checkpoint(out / "checkpoints" / "step-000001").tensors["adapter.safetensors"]
        signs.append(torch.cat([value.flatten().sign() for key, value in adapter.items() if "lora_B" in key]))
    assert (signs[0] == signs[1]).float().mean() > 0.8


@pytest.mark.parametrize(
    ("variant", "format"), [("LoRA", "diffusers"), ("LoRA on every layer", "diffusers"), ("full", "merged")]
)
def test_an_export_draws_the_gallery_in_plain_diffusers(
    tiny_settings: RunSettings, tiny_flux_folders: dict[str, Path], tmp_path: Path, variant: str, format: str
) -> None:
    run, folder = tmp_path / "run", tiny_flux_folders["dev"]
    settings = run_settings(tiny_settings, folder, VARIANTS[variant])
    train_in(settings, run)
    report = export_run(run, format, tmp_path / "out")
    assert report.max_difference <= 2

    tile = np.asarray(Image.open(run / "samples" / "step-000002" / "000.png"))
    prompt = "the large star"  # the last fifth of the prompts is held out
    pipeline = FluxPipeline.from_pretrained(folder)
    base = call(pipeline, prompt, 3, 3.5, settings.evaluation.seed)[0]
    if (tmp_path / "out" / "transformer").is_dir():
        tuned = type(pipeline.transformer).from_pretrained(tmp_path / "out" / "transformer")
        pipeline = FluxPipeline.from_pretrained(folder, transformer=tuned)
    else:
        pipeline.load_lora_weights(tmp_path / "out")
        header = read_header(next((tmp_path / "out").glob("*.safetensors")))
        assert header["modelspec.resolution"] == f"{SIDE}x{SIDE}"
    assert difference(call(pipeline, prompt, 3, 3.5, settings.evaluation.seed)[0], tile) <= 2
    assert difference(base, tile) > 8, "the tuning changed the image"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"height={SIDE},\n    width={SIDE}," in card
