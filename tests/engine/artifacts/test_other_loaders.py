"""Diffusers' own LoRA loader on the files of each format, through its pipelines, at sizes unlike the other tests'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from engine.artifacts.export.comfyui import ComfyUi
from engine.artifacts.export.diffusers_lora import DiffusersLora
from engine.artifacts.export.kohya import Kohya
from engine.artifacts.export.source import ExportSource
from engine.artifacts.export.transformer_facts import TransformerFacts
from tests.engine.artifacts.families import family_facts, lora_source, weight_deltas

pytestmark = [
    # Diffusers' Chroma uses a class that diffusers itself calls deprecated.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    # Peft's word on how a layer that is merged behaves.
    pytest.mark.filterwarnings("ignore:.*already found a `peft_config`.*:UserWarning"),
]

RANK, ALPHA = 3, 7.0
FORMATS: dict[str, Any] = {"diffusers": DiffusersLora(), "comfyui": ComfyUi(), "kohya": Kohya()}
# Pipeline, transformer, and what it is built with.
SIZES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "FLUX.1": ("FluxPipeline", "FluxTransformer2DModel", {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 3, "attention_head_dim": 16, "num_attention_heads": 3,
        "joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": (4, 6, 6),
    }),
    "FLUX.2": ("Flux2Pipeline", "Flux2Transformer2DModel", {
        "in_channels": 12, "num_layers": 3, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 5,
        "joint_attention_dim": 20, "timestep_guidance_channels": 16, "axes_dims_rope": (2, 2, 2, 2),
    }),
    "FLUX.2 klein": ("Flux2KleinPipeline", "Flux2Transformer2DModel", {
        "in_channels": 12, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 1,
        "joint_attention_dim": 28, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }),
    "Chroma": ("ChromaPipeline", "ChromaTransformer2DModel", {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 3, "attention_head_dim": 16, "num_attention_heads": 3,
        "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6), "approximator_num_channels": 16,
        "approximator_hidden_dim": 20, "approximator_layers": 3,
    }),
    "SD3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 4,
        "num_attention_heads": 5, "joint_attention_dim": 24, "caption_projection_dim": 20, "pooled_projection_dim": 12,
        "pos_embed_max_size": 8,
    }),
    "SD3.5 medium": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 4, "attention_head_dim": 4,
        "num_attention_heads": 3, "joint_attention_dim": 24, "caption_projection_dim": 12, "pooled_projection_dim": 12,
        "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1, 2),
    }),
    "Lumina 2": ("Lumina2Pipeline", "Lumina2Transformer2DModel", {
        "sample_size": 8, "in_channels": 4, "hidden_size": 48, "num_layers": 1, "num_refiner_layers": 2,
        "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (8, 4, 4), "cap_feat_dim": 20,
    }),
    "Qwen-Image": ("QwenImagePipeline", "QwenImageTransformer2DModel", {
        "in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 3,
        "joint_attention_dim": 20, "axes_dims_rope": (4, 6, 6),
    }),
    "Z-Image": ("ZImagePipeline", "ZImageTransformer2DModel", {
        "in_channels": 4, "dim": 48, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 3, "n_kv_heads": 3,
        "cap_feat_dim": 20, "axes_dims": [4, 6, 6],
    }),
    "SANA": ("SanaPipeline", "SanaTransformer2DModel", {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 3, "attention_head_dim": 4, "num_layers": 2,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 6, "cross_attention_dim": 12,
        "caption_channels": 20, "sample_size": 8,
    }),
}  # fmt: skip
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
EVERY = ("",)
# What its loader reads of a file: the layers by the beginnings of their names.
READS: list[tuple[str, str, tuple[str, ...]]] = [
    *((name, "diffusers", EVERY) for name in SIZES),
    *((name, form, EVERY) for name in ("Qwen-Image", "Z-Image") for form in ("comfyui", "kohya")),
    *((name, "kohya", BLOCKS) for name in ("FLUX.2", "FLUX.2 klein")),
]
# Where it has another family's names, the published widths, or no place for alpha, written into it.
REFUSES = [
    ("SD3", "comfyui"), ("FLUX.1", "kohya"), ("FLUX.2", "comfyui"), ("Chroma", "kohya"), ("Lumina 2", "comfyui"),
]  # fmt: skip


def made(name: str, folder: Path, form: str, starts: tuple[str, ...]) -> tuple[ExportSource, Any, Path]:
    """A file of a LoRA of the layers with those beginnings, and a pipeline of the size, all parts absent but one."""
    kind_name, class_name, config = SIZES[name]
    facts: TransformerFacts = family_facts(class_name, config)
    source = lora_source(facts, folder, RANK, ALPHA, lambda layer: layer.startswith(starts))
    FORMATS[form].write(source, folder)
    torch.manual_seed(0)
    transformer = getattr(diffusers, class_name)(**config)
    kind = getattr(diffusers, kind_name)
    parts = dict.fromkeys(set(kind._get_signature_keys(kind)[0]) - {"self"})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = kind(**(parts | {"transformer": transformer, "scheduler": scheduler}))
    return source, pipeline, next(folder.glob("*.safetensors"))


def linear_weights(source: ExportSource, pipeline: Any) -> dict[str, Tensor]:
    return {name: pipeline.transformer.get_submodule(name).weight.detach().clone() for name in source.facts.layers}


@pytest.mark.parametrize(("name", "form", "starts"), READS)
def test_its_pipeline_reads_the_file_to_the_same_weights(
    tmp_path: Path, name: str, form: str, starts: tuple[str, ...]
) -> None:
    source, pipeline, path = made(name, tmp_path, form, starts)
    before = linear_weights(source, pipeline)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    wanted = weight_deltas(source)
    assert wanted
    for layer, after in linear_weights(source, pipeline).items():
        change = wanted.get(layer, torch.zeros_like(after))
        torch.testing.assert_close(after - before[layer], change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "form"), REFUSES)
def test_what_it_refuses_is_what_the_guide_says(tmp_path: Path, name: str, form: str) -> None:
    _, pipeline, path = made(name, tmp_path, form, EVERY)
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        pipeline.load_lora_weights(path)
