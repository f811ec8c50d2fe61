"""LoRAs and transformers as starting points: equal to diffusers' own merge, in every way of naming layers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.models import load_model
from engine.settings import ModelSettings

RANK, ALPHA = 4, 10.0
TARGETS = ["attn.to_q", "attn.to_out.0", "ff.net.2"]
Names = Callable[[str], str]


def adapter(folder: Path, kind: Any = StableDiffusion3Pipeline) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A random LoRA by peft's names, and the base's weights with it merged by peft itself."""
    transformer = kind.from_pretrained(folder, dtype=torch.float32).transformer
    with torch.random.fork_rng():
        torch.manual_seed(5)
        transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False))
    lora = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(transformer).items()}
    transformer.fuse_lora()
    transformer.unload_lora()
    return lora, transformer.state_dict()


def started(folder: Path, start: Path, **settings: Any) -> dict[str, Tensor]:
    model = load_model(ModelSettings(folder=str(folder), start_from=str(start), **settings))
    return dict(model.transformer.state_dict())


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], base: dict[str, Tensor]) -> None:
    """All tensors alike up to rounding, and some of them far from the base's."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert max(float((found[name] - base[name]).abs().max()) for name in base) > 0.1


def base_weights(folder: Path, **settings: Any) -> dict[str, Tensor]:
    return dict(load_model(ModelSettings(folder=str(folder), **settings)).transformer.state_dict())


def with_alphas(lora: dict[str, Tensor], rename: Names) -> dict[str, Tensor]:
    """The tensors by other names, alpha beside each pair."""
    tensors = {rename(name): tensor.contiguous() for name, tensor in lora.items()}
    layers = {re.sub(r"\.lora[._].*", "", name) for name in tensors}
    return tensors | {f"{layer}.alpha": torch.tensor(ALPHA) for layer in layers}


def comfyui(name: str) -> str:
    return f"diffusion_model.{name}"


def kohya(name: str) -> str:
    layer, _, which = name.partition(".lora_")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if which.startswith('A') else 'up'}.weight"


def old_diffusers(name: str) -> str:
    return "transformer." + name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


@pytest.mark.parametrize("rename", [comfyui, kohya, old_diffusers])
def test_a_lora_with_alphas(tiny_pipeline_folder: Path, tmp_path: Path, rename: Names) -> None:
    lora, wanted = adapter(tiny_pipeline_folder)
    save_file(with_alphas(lora, rename), tmp_path / "lora.bin")  # what it is called says nothing
    found = started(tiny_pipeline_folder, tmp_path / "lora.bin")
    assert_equal(found, wanted, base_weights(tiny_pipeline_folder))


@pytest.mark.parametrize("told", [True, False])
def test_a_diffusers_lora_with_its_scale_in_the_header(tiny_pipeline_folder: Path, tmp_path: Path, told: bool) -> None:
    lora, _ = adapter(tiny_pipeline_folder)
    tensors = {f"transformer.{name}": tensor.contiguous() for name, tensor in lora.items()}
    config = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.target_modules": TARGETS}
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(config)} if told else None)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline_folder, dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    found = started(tiny_pipeline_folder, tmp_path / "lora.safetensors")
    assert_equal(found, pipeline.transformer.state_dict(), base_weights(tiny_pipeline_folder))


def test_a_flux_lora_with_its_authors_names(tiny_flux_folders: dict[str, Path], tmp_path: Path) -> None:
    """kohya's FLUX files name layers as Black Forest Labs do: q, k and v in one."""
    folder = tiny_flux_folders["dev"]
    width = 32
    with torch.random.fork_rng():
        torch.manual_seed(6)
        tensors = {
            f"lora_unet_{layer}.{which}": torch.randn(shape) * 0.3
            for layer, out in (("double_blocks_0_img_attn_qkv", 3 * width), ("double_blocks_1_txt_attn_proj", width))
            for which, shape in (("lora_down.weight", (RANK, width)), ("lora_up.weight", (out, RANK)))
        }
    tensors |= {f"{name.split('.')[0]}.alpha": torch.tensor(ALPHA) for name in tensors}
    save_file(tensors, tmp_path / "lora.safetensors")
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    found = started(folder, tmp_path / "lora.safetensors", name="flux")
    assert_equal(found, pipeline.transformer.state_dict(), base_weights(folder, name="flux"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_encoder.layers.0.lora_A.weight": (4, 4)}, "adapts the text encoders too"),
        ({"transformer.transformer_blocks.0.attn.to_q.dora_scale": (4,)}, "is a DoRA"),
        ({"transformer.nowhere.lora_A.weight": (4, 16), "transformer.nowhere.lora_B.weight": (16, 4)},
         "LoRA of another model: 2 of its tensors belong to no layer"),
        ({"transformer.transformer_blocks.1.attn.to_k.lora_A.weight": (4, 16)}, "has only one of its two matrices"),
        ({"transformer.transformer_blocks.1.attn.to_k.lora_A.weight": (4, 8),
          "transformer.transformer_blocks.1.attn.to_k.lora_B.weight": (16, 4)}, "as if that were"),
    ],
)  # fmt: skip
def test_a_lora_that_does_not_fit(
    tiny_pipeline_folder: Path, tmp_path: Path, change: dict[str, tuple[int, ...]], says: str
) -> None:
    lora, _ = adapter(tiny_pipeline_folder)
    tensors = {f"transformer.{name}": tensor.contiguous() for name, tensor in lora.items()}
    save_file(tensors | {name: torch.zeros(shape) for name, shape in change.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=says):
        started(tiny_pipeline_folder, tmp_path / "lora.safetensors")


def moved(folder: Path, target: Path, kind: Any, shards: str = "10GB") -> dict[str, Tensor]:
    """A transformer with other weights, saved as a folder; its weights."""
    transformer = kind.from_pretrained(folder, dtype=torch.float32).transformer
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.5)
    transformer.save_pretrained(target, max_shard_size=shards)
    return dict(transformer.state_dict())


@pytest.mark.parametrize("place", ["transformer folder", "in shards", "pipeline folder", "file"])
def test_another_transformer(tiny_pipeline_folder: Path, tmp_path: Path, place: str) -> None:
    target = tmp_path / "transformer"
    wanted = moved(tiny_pipeline_folder, target, StableDiffusion3Pipeline, "20KB" if place == "in shards" else "10GB")
    assert len(list(target.glob("*.safetensors"))) > 1 or place != "in shards"
    file = target / "diffusion_pytorch_model.safetensors"
    start = {"pipeline folder": tmp_path, "file": file}.get(place, target)
    assert_equal(started(tiny_pipeline_folder, start), wanted, base_weights(tiny_pipeline_folder))


def test_a_transformer_in_the_precision_of_the_base(tiny_flux_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_flux_folders["dev"]
    wanted = moved(folder, tmp_path / "t", FluxPipeline)
    found = started(folder, tmp_path / "t", name="flux", precision="bfloat16")
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in wanted.items())


def test_a_single_file_with_its_authors_names(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """Stability's names, as diffusers reads them: q, k and v in one, and the last layer's scale and shift swapped."""
    wanted = moved(tiny_pipeline_folder, tmp_path / "t", StableDiffusion3Pipeline)
    original = as_published(wanted, num_blocks=2)
    save_file(original, tmp_path / "sd3.safetensors")
    found = started(tiny_pipeline_folder, tmp_path / "sd3.safetensors")
    assert_equal(found, wanted, base_weights(tiny_pipeline_folder))
    original.pop("model.diffusion_model.t_embedder.mlp.0.bias")
    save_file(original, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="is no LoRA and no transformer of this model"):
        started(tiny_pipeline_folder, tmp_path / "half.safetensors")


def test_a_width_that_diffusers_does_not_read_is_said(tiny_flux_folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({"double_blocks.0.img_attn.proj.weight": torch.zeros(32, 32)}, tmp_path / "flux.safetensors")
    with pytest.raises(ValueError, match="single files of this family at their published width alone"):
        started(tiny_flux_folders["dev"], tmp_path / "flux.safetensors", name="flux")


def as_published(state: dict[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    """Stable Diffusion 3's weights by the names of its authors' code."""
    out: dict[str, Tensor] = {"pos_embed": state["pos_embed.pos_embed"]}

    def put(theirs: str, *ours: str, swap: bool = False) -> None:
        for end in ("weight", "bias"):
            if f"{ours[0]}.{end}" in state:
                joined = torch.cat([state[f"{name}.{end}"] for name in ours])
                halves = joined.chunk(2)
                out[f"{theirs}.{end}"] = torch.cat([halves[1], halves[0]]) if swap else joined

    put("x_embedder.proj", "pos_embed.proj")
    put("context_embedder", "context_embedder")
    put("final_layer.linear", "proj_out")
    put("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    for mine, theirs in (("timestep", "t_embedder"), ("text", "y_embedder")):
        for linear, place in ((1, 0), (2, 2)):
            put(f"{theirs}.mlp.{place}", f"time_text_embed.{mine}_embedder.linear_{linear}")
    for i in range(num_blocks):
        ours, theirs, last = f"transformer_blocks.{i}", f"joint_blocks.{i}", i == num_blocks - 1
        for stream, norm, projections, out_name, feed in (
            ("x_block", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
            ("context_block", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
        ):
            swap = last and stream == "context_block"
            put(f"{theirs}.{stream}.adaLN_modulation.1", f"{ours}.{norm}.linear", swap=swap)
            put(f"{theirs}.{stream}.attn.qkv", *(f"{ours}.attn.{name}" for name in projections))
            put(f"{theirs}.{stream}.attn.proj", f"{ours}.attn.{out_name}")
            put(f"{theirs}.{stream}.mlp.fc1", f"{ours}.{feed}.net.0.proj")
            put(f"{theirs}.{stream}.mlp.fc2", f"{ours}.{feed}.net.2")
    return {f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in out.items()}


def test_what_is_no_starting_point(
    tiny_pipeline_folder: Path, tiny_flux_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00." * 9)
    (tmp_path / "empty").mkdir()
    another = tiny_flux_folders["dev"] / "transformer"
    bare = load_file(tiny_pipeline_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(bare | {"pos_embed.proj.bias": torch.zeros(3)}, tmp_path / "shape.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    for start, says in (
        (tmp_path / "gone", "is not there; check model.start_from"),
        (tmp_path / "pickle.safetensors", "never pickles"),
        (tmp_path / "empty", "holds no transformer"),
        (another, "is another model's transformer"),
        (tmp_path / "shape.safetensors", r"pos_embed.proj.bias is \(3,\) in it and \(16,\) in the base"),
        (tmp_path / "x.safetensors", "is no LoRA and no transformer of this model"),
    ):
        with pytest.raises(ValueError, match=says):
            started(tiny_pipeline_folder, start)
