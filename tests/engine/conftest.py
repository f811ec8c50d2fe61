"""Tiny pipelines of the true architectures, with random weights, saved as pipeline folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from engine.settings import (
    CheckpointSettings,
    ComputeSettings,
    EvaluationSettings,
    GrpoSettings,
    ModelSettings,
    OptimiserSettings,
    PromptSettings,
    RewardSettings,
    RunSettings,
    SamplingSettings,
    TuningSettings,
    WindowSettings,
)
from tests.engine.models.tiny_flux import FLUX_SCHEDULERS, flux
from tests.engine.training import train_in

WORDS = [
    "a",
    "an",
    "the",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "of",
    "left",
    "right",
    "above",
    "below",
    "large",
    "small",
    "on",
    "white",
]


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<start>", "<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=8,
    )  # fmt: skip


def _clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=width,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def _text_encoder(width: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_clip_config(width)).eval()


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def _silent_t5(width: int) -> T5EncoderModel:
    """A third encoder that says nothing: diffusers opens no SD3 folder without one."""
    encoder = _t5(width)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, scaling_factor=1.3, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an SD3 pipeline that draws 16×16 images in milliseconds; its weights are random but fixed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=24,
            pos_embed_max_size=8,
        ).eval()  # fmt: skip
        vae = _autoencoder()
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
            text_encoder=_text_encoder(16), tokenizer=_tokenizer(), text_encoder_2=_text_encoder(8),
            tokenizer_2=_tokenizer(), text_encoder_3=_silent_t5(32), tokenizer_3=_tokenizer(),
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_flux_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of FLUX.1 pipelines like dev and schnell, whose autoencoder has 2 pixels a latent instead of 8."""
    folders = {name: tmp_path_factory.mktemp("flux") / name for name in FLUX_SCHEDULERS}
    for name, folder in folders.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            flux(name).save_pretrained(folder)
    return folders


@pytest.fixture
def tiny_settings(tiny_settings_in: Callable[[Path], RunSettings], tmp_path: Path) -> RunSettings:
    """A run that takes a second: three prompts of a file, the tiny pipeline, four iterations."""
    return tiny_settings_in(tmp_path)


@pytest.fixture(scope="session")
def tiny_settings_in(tiny_pipeline_folder: Path) -> Callable[[Path], RunSettings]:
    """Gives `tiny_settings`, its prompts in a folder."""
    return lambda folder: _tiny_settings(tiny_pipeline_folder, folder)


def _tiny_settings(pipeline_folder: Path, folder: Path) -> RunSettings:
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle\na blue star\na green square\nred square above blue circle\nthe large star\n")
    return RunSettings(
        seed=3,
        iterations=4,
        model=ModelSettings(folder=str(pipeline_folder)),
        prompts=PromptSettings(file=str(prompts)),
        rewards=(RewardSettings(name="vividness"), RewardSettings(name="incompressibility", weight=0.5)),
        sampling=SamplingSettings(num_steps=8),
        window=WindowSettings(size=2, iterations_per_position=1),
        grpo=GrpoSettings(prompts_per_iteration=2, group_size=4, updates_per_iteration=2),
        optimiser=OptimiserSettings(learning_rate=1e-3),
        tuning=TuningSettings(rank=4, alpha=8.0),
        evaluation=EvaluationSettings(every=2, num_prompts=2, num_steps=4),
        checkpoints=CheckpointSettings(every=2),
        compute=ComputeSettings(device="cpu", num_threads=1),
    )


@pytest.fixture
def tiny_run(
    tiny_settings: RunSettings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Gives the folder of a run of two iterations, a checkpoint each, of a variant of `tiny_settings`.

    A variant is trained once a session; each test has a copy of its own.
    """

    def make(name: str = "run", **changes: Any) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in TRAINED:
            # So fast that its images differ from the base model's.
            fast = {"iterations": 2, "checkpoints": {"every": 1}, "optimiser": {"learning_rate": 3e-2}}
            settings = RunSettings.model_validate(tiny_settings.model_dump() | fast | changes)
            run = tmp_path_factory.mktemp("trained")
            train_in(settings, run)
            TRAINED[key] = run
        return Path(shutil.copytree(TRAINED[key], tmp_path / name))

    return make


TRAINED: dict[str, Path] = {}
