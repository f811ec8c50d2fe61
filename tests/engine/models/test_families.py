"""Each published family against its plain diffusers pipeline: images, grid, embeddings, training, exports."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.artifacts.checkpoint import load_checkpoint
from engine.artifacts.export import ExportError, export_run
from engine.artifacts.export.header import read_header
from engine.catalogue import why_not
from engine.models import load_model
from engine.models.base import stack_embeddings
from engine.models.embedding_cache import EmbeddingCache
from engine.models.pipelines import open_pipeline
from engine.models.plain_calls import load_lora, lora_code, setup_code
from engine.settings import ModelSettings, RunSettings
from engine.tuning import make_trainable
from tests.engine.models.families import (
    FAMILIES,
    MEASURED,
    PROMPTS,
    Family,
    call,
    difference,
    draw,
    open_model,
    other_size,
)
from tests.engine.training import train_in

# diffusers' own code: Chroma builds its positions by a name that has moved, SANA's scheduler copies as numpy 1 did.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

CPU = torch.device("cpu")
UNPUBLISHED = {"comfyui": {"sana"}, "kohya": {"sana", "hunyuan_image"}}
LORA: dict[str, Any] = {"method": "lora", "rank": 4, "alpha": 8.0}
FolderOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """Gives the folder of a family's tiny pipeline, saved once a session."""
    saved: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in saved:
            saved[name] = tmp_path_factory.mktemp("family") / "tiny"
            with torch.random.fork_rng():
                torch.manual_seed(0)
                pipeline: Any = FAMILIES[name].make()
                # So that random weights heed the prompt, and an error in what they are told of it shows.
                for part in pipeline.transformer.modules():
                    if isinstance(part, nn.Linear):
                        part.weight.data *= 2
                pipeline.save_pretrained(saved[name])
        return saved[name]

    return folder


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture
def folder(name: str, folder_of: FolderOf) -> Path:
    return folder_of(name)


def run_settings(base: RunSettings, family: Family, folder: Path, **changes: Any) -> RunSettings:
    """One iteration of two images of two prompts, with the family's guidance and the grid that it brings."""
    own = {
        "iterations": 1,
        "model": family.settings(folder).model_dump(),
        "sampling": {"num_steps": 4, "shift": "model", "guidance_scale": family.scales[-1]},
        "grpo": {"prompts_per_iteration": 2, "group_size": 2, "updates_per_iteration": 2},
        "evaluation": {"every": 1, "num_prompts": 1, "num_steps": 3, "guidance_scale": family.scales[-1]},
        "checkpoints": {"every": 1},
        "optimiser": {"learning_rate": 3e-2},
        "tuning": LORA,
    }
    return RunSettings.model_validate(base.model_dump() | own | changes)


@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name, family in FAMILIES.items() for scale in family.scales]
)
def test_draws_what_the_plain_pipeline_call_draws(name: str, scale: float, folder_of: FolderOf) -> None:
    """From the same seed, so the noise is the pipeline's too; prompts of two lengths in one batch."""
    family, folder = FAMILIES[name], folder_of(name)
    pipeline = open_pipeline(folder, torch.float32)
    expected = call(family, pipeline, PROMPTS, 5, scale, seed=7)
    model = open_model(family, folder)
    assert torch.equal(model.sigmas(5), pipeline.scheduler.sigmas.double()), "the grid is the one of that call"
    drawn = draw(model, PROMPTS, 5, scale, seed=7)
    assert difference(drawn, expected) <= 1
    assert drawn.std() > 5, "the random model draws something to compare"
    assert difference(expected[0], call(family, pipeline, PROMPTS[1], 5, scale, seed=7)[0]) > 3, "it heeds the prompt"


@pytest.mark.parametrize("name", {family.name: name for name, family in reversed(MEASURED.items())}.values())
def test_it_does_so_in_another_size_and_with_a_scheduler_of_other_times(name: str, tmp_path: Path) -> None:
    """Of 600 training steps instead of 1000, as a scheduler's configuration may have it."""
    family = MEASURED[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipeline = other_size(family.make())
    config = dict(pipeline.scheduler.config) | {"num_train_timesteps": 600}
    pipeline.scheduler = type(pipeline.scheduler).from_config(config)
    pipeline.save_pretrained(tmp_path)
    model, scale = open_model(family, tmp_path), family.scales[-1]
    drawn = draw(model, PROMPTS, 2, scale, seed=7)
    assert difference(drawn, call(family, pipeline, PROMPTS, 2, scale, seed=7)) <= 1
    assert drawn.std() > 5, "the random model draws something to compare"


def test_guidance_changes_the_image(family: Family, folder: Path) -> None:
    model = open_model(family, folder)
    weak, strong = (draw(model, PROMPTS[:1], 3, scale, seed=7) for scale in (1.0, family.scales[-1]))
    assert difference(weak, strong) > 3 or family.scales == (1.0,)


def test_a_prompt_is_encoded_alike_alone_and_beside_longer_ones(family: Family, folder: Path) -> None:
    model = open_model(family, folder)
    both = model.encode(PROMPTS)
    alone = stack_embeddings([model.encode([prompt]) for prompt in PROMPTS], CPU)
    assert both.texts.keys() == alone.texts.keys() and both.num_padding == alone.num_padding
    for name, tensor in both.texts.items():
        torch.testing.assert_close(alone.texts[name], tensor, atol=1e-5, rtol=1e-4)
    assert (both.empty or {}).keys() == (alone.empty or {}).keys()
    for name, tensor in (both.empty or {}).items():
        torch.testing.assert_close((alone.empty or {})[name], tensor, atol=1e-5, rtol=1e-4)


def test_embeddings_outlive_the_encoders_on_disk(family: Family, folder: Path, tmp_path: Path) -> None:
    model: Any = open_model(family, folder)
    direct = stack_embeddings([model.encode([prompt]) for prompt in PROMPTS], CPU)
    EmbeddingCache(model, tmp_path, CPU).fill(PROMPTS, lambda done, total: None)
    model.release_encoders()
    kept = [name for name, part in model.pipeline.components.items() if isinstance(part, nn.Module)]
    assert sorted(kept) == ["transformer", "vae"]
    read = EmbeddingCache(model, tmp_path, CPU).encode(PROMPTS)
    assert read.num_padding == direct.num_padding
    assert all(torch.equal(read.texts[name], tensor) for name, tensor in direct.texts.items())
    assert all(torch.equal((read.empty or {})[name], tensor) for name, tensor in (direct.empty or {}).items())


def test_a_lora_adapts_the_attention_and_feed_forward_of_every_block(
    family: Family, folder: Path, tiny_settings: RunSettings
) -> None:
    model = open_model(family, folder)
    # What is left out of the blocks is modulation and, as in FLUX LoRAs, the feed-forward of single blocks.
    linear = {
        name for name, part in model.transformer.named_modules()
        if isinstance(part, nn.Linear) and re.search(r"^(?!\w*embed)\w+\.\d+\.|refiner_blocks\.\d", name)
        and not any(word in name for word in ("norm", "mod", "adaLN", "proj_mlp", "proj_out"))
    }  # fmt: skip
    assert all(any(f".{name}".endswith(f".{target}") for name in linear) for target in model.lora_targets)
    names = make_trainable(model, tiny_settings.tuning, 0, keep_base=False).parameters
    adapted = {name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")}
    assert adapted == linear and len(linear) > 10


def test_training_is_on_policy_and_checkpointing_changes_no_weight(
    family: Family, folder: Path, tiny_settings: RunSettings, tmp_path: Path
) -> None:
    adapters = []
    for checkpointing in (False, True):
        settings = run_settings(tiny_settings, family, folder, tuning=LORA | {"gradient_checkpointing": checkpointing})
        (done,) = train_in(settings, tmp_path / str(checkpointing))
        assert done.num_trained_steps == 8
        assert done.ratio_drift <= 1e-5
        checkpoint = load_checkpoint(tmp_path / str(checkpointing) / "checkpoints" / "step-000001")
        adapters.append(checkpoint.tensors["adapter.safetensors"])
    assert any(bool(tensor.any()) for key, tensor in adapters[0].items() if "lora_B" in key)
    assert all(torch.equal(adapters[1][key], tensor) for key, tensor in adapters[0].items())


@pytest.mark.parametrize(("method", "format"), [("lora", "diffusers"), ("full", "merged")])
def test_an_export_draws_the_gallery_in_plain_diffusers(
    family: Family, folder: Path, tiny_settings: RunSettings, tmp_path: Path, method: str, format: str
) -> None:
    tuning = LORA if method == "lora" else {"method": "full"}
    rate = {"learning_rate": 3e-2 if method == "lora" else 3e-3}
    settings = run_settings(tiny_settings, family, folder, tuning=tuning, optimiser=rate)
    (done,) = train_in(settings, tmp_path / "run")
    assert done.ratio_drift <= 1e-5
    report = export_run(tmp_path / "run", format, tmp_path / "out")
    assert report.verified and report.max_difference <= 2

    tile = np.asarray(Image.open(tmp_path / "run" / "samples" / "step-000001" / "000.png"))
    prompt = "the large star"  # the last fifth of the prompts is held out
    asked = (prompt, 3, family.scales[-1], settings.evaluation.seed)
    pipeline = open_pipeline(folder, torch.float32)
    base = call(family, pipeline, *asked)[0]
    if method == "lora":
        load_lora(pipeline, tmp_path / "out", "pytorch_lora_weights.safetensors")
        side = read_header(next((tmp_path / "out").glob("*.safetensors")))["modelspec.resolution"]
        assert side == f"{family.side}x{family.side}"
    else:
        kind = type(pipeline.transformer)
        pipeline.register_modules(transformer=kind.from_pretrained(tmp_path / "out" / "transformer"))
    assert difference(call(family, pipeline, *asked)[0], tile) <= 2
    assert difference(base, tile) > 5, "the tuning changed the image"
    card = (tmp_path / "out" / "README.md").read_text()
    scale = family.scales[-1]
    assert setup_code(family.name, folder, scale) in card
    assert (lora_code(family.name, "pytorch_lora_weights.safetensors") in card) == (method == "lora")


def test_other_formats_draw_it_too_or_are_refused(
    family: Family, folder: Path, tiny_settings: RunSettings, tmp_path: Path
) -> None:
    tuning, rate = {"rank": 6, "alpha": 15.0, "layers": "all"}, {"learning_rate": 3e-2}
    train_in(run_settings(tiny_settings, family, folder, tuning=tuning, optimiser=rate), tmp_path / "run")
    for form in ("comfyui", "kohya", "pipeline"):
        refusal = why_not(form, "lora", family.name)
        assert (refusal is not None) == (family.name in UNPUBLISHED.get(form, ()))
        if refusal is None:
            assert export_run(tmp_path / "run", form, tmp_path / form).max_difference <= 2
        else:
            with pytest.raises(ExportError, match="no published names for the layers of"):
                export_run(tmp_path / "run", form, tmp_path / form)


def test_in_bfloat16_frozen_weights_are_small_and_it_trains(
    family: Family, folder: Path, tiny_settings: RunSettings, tmp_path: Path
) -> None:
    precise = family.settings(folder, precision="bfloat16")
    model: Any = load_model(precise)
    make_trainable(model, tiny_settings.tuning, 0, keep_base=False)
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in model.transformer.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert {parameter.dtype for parameter in model.pipeline.vae.parameters()} == {torch.float32}
    (done,) = train_in(run_settings(tiny_settings, family, folder, model=precise.model_dump()), tmp_path / "run")
    assert done.num_trained_steps == 8 and done.ratio_drift < 0.05


def test_a_folder_of_another_class_is_refused(family: Family, tiny_flux_folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=f"holds a FluxPipeline, but {family.name} needs a "):
        load_model(ModelSettings(name=family.name, folder=str(tiny_flux_folders["dev"])))
