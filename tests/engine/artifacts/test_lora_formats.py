"""ComfyUI's and kohya's files: names, rows and scale of every family, by readers that do not know the writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Pipeline, FluxPipeline, QwenImagePipeline, ZImagePipeline
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.artifacts.export.architecture import architecture_id
from engine.artifacts.export.comfyui import ComfyUi
from engine.artifacts.export.header import header, read_header
from engine.artifacts.export.kohya import BASES, NETWORKS, Kohya, training_texts
from engine.artifacts.export.lora_layers import LoraLayer, stack
from engine.artifacts.export.native_names import NATIVE_NAMES
from engine.artifacts.export.published_lora import PublishedLora
from engine.artifacts.export.published_places import PUBLISHED_RULES
from engine.artifacts.export.source import ExportError
from engine.artifacts.export.transformer_facts import TransformerFacts
from engine.artifacts.tensor_files import tensor_sha256
from engine.catalogue import MODEL_INFO, why_not
from engine.presets import PRESETS
from tests.engine.artifacts.families import family_source, weight_deltas

# Diffusers' Chroma uses a class that diffusers itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

FORMATS: dict[str, PublishedLora] = {"comfyui": ComfyUi(), "kohya": Kohya()}


def written(kind: PublishedLora, source: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kind.write(source, folder)
    assert kind.single_file is not None
    return folder / kind.single_file


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_every_family_with_names_has_rules_and_a_network() -> None:
    assert NATIVE_NAMES.keys() == PUBLISHED_RULES.keys() == NETWORKS.keys() | {"HunyuanImageTransformer2DModel"}


CLASSES: dict[str, str] = {
    "builtin": "SD3Transformer2DModel", "sd3": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel",
    "flux2": "Flux2Transformer2DModel", "flux2_klein": "Flux2Transformer2DModel", "chroma": "ChromaTransformer2DModel",
    "lumina2": "Lumina2Transformer2DModel", "qwen_image": "QwenImageTransformer2DModel",
    "z_image": "ZImageTransformer2DModel", "sana": "SanaTransformer2DModel",
    "hunyuan_image": "HunyuanImageTransformer2DModel",
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_the_catalogue_refuses_the_families_that_have_no_names(format: str) -> None:
    assert CLASSES.keys() == MODEL_INFO.keys()
    for model, class_name in CLASSES.items():
        assert (why_not(format, "lora", model) is None) == (class_name in FORMATS[format].families)


FILES = [(family, format) for format, kind in FORMATS.items() for family in sorted(kind.families)]


@pytest.mark.parametrize("rank", [4, 32])
@pytest.mark.parametrize(("family", "format"), FILES)
def test_a_lora_of_every_layer_is_read_back(tmp_path: Path, family: str, format: str, rank: int) -> None:
    source = family_source(family, tmp_path, rank=rank, alpha=24.0)
    kind = FORMATS[format]
    path = written(kind, source, tmp_path / "out")
    difference = kind.weight_difference(source, tmp_path / "out")
    assert difference is not None
    assert difference < 1e-5
    tensors = load_file(path)
    assert sum(key.endswith(".alpha") for key in tensors) * 3 == len(tensors)


# A published checkpoint ---------------------------------------------------------------------------------------------

CONVERSIONS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "FluxTransformer2DModel": single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
    "Flux2Transformer2DModel": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    "ChromaTransformer2DModel": single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers,
    "SD3Transformer2DModel": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "Lumina2Transformer2DModel": single_file_utils.convert_lumina2_to_diffusers,
}


class Checkpoint(dict[str, Tensor]):
    """A checkpoint of linear layers alone: whatever else a conversion asks for is zero."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key) if key in self else torch.zeros(3 * 3072 + 12288, 1)


def on_a_published_checkpoint(path: Path) -> Checkpoint:
    """What a ComfyUI file adds to the weights of a published checkpoint, by the names alone."""
    tensors = load_file(path)
    layers = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
    return Checkpoint(
        {
            layer.removeprefix("diffusion_model.") + ".weight": tensors[f"{layer}.alpha"].item()
            / len(tensors[f"{layer}.lora_A.weight"])
            * tensors[f"{layer}.lora_B.weight"]
            @ tensors[f"{layer}.lora_A.weight"]
            for layer in layers
        }
    )


@pytest.mark.parametrize("family", CONVERSIONS)
def test_diffusers_conversion_of_the_published_checkpoint_finds_the_same_change(tmp_path: Path, family: str) -> None:
    source = family_source(family, tmp_path)
    checkpoint = on_a_published_checkpoint(written(ComfyUi(), source, tmp_path / "out"))
    converted = CONVERSIONS[family](checkpoint)
    for name, wanted in weight_deltas(source).items():
        assert_close(converted[f"{name}.weight"], wanted)


# Diffusers' own readers ---------------------------------------------------------------------------------------------

READERS: list[tuple[str, str, Any]] = [
    ("FluxTransformer2DModel", "kohya", FluxPipeline),
    ("Flux2Transformer2DModel", "kohya", Flux2Pipeline),
    ("QwenImageTransformer2DModel", "comfyui", QwenImagePipeline),
    ("QwenImageTransformer2DModel", "kohya", QwenImagePipeline),
    ("ZImageTransformer2DModel", "comfyui", ZImagePipeline),
]
# What diffusers' reader of a kohya file passes over, or takes for alpha = rank: everything but FLUX's blocks.
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


@pytest.mark.parametrize(("family", "format", "pipeline"), READERS)
def test_diffusers_reads_the_file_to_the_same_change(tmp_path: Path, family: str, format: str, pipeline: Any) -> None:
    source = family_source(family, tmp_path)
    read = pipeline.lora_state_dict(written(FORMATS[format], source, tmp_path / "out"))
    for name, wanted in weight_deltas(source).items():
        if family.startswith("Flux") and not name.startswith(BLOCKS):
            continue
        found = read[f"transformer.{name}.lora_B.weight"] @ read[f"transformer.{name}.lora_A.weight"]
        assert_close(found, wanted)


# What a file holds ----------------------------------------------------------------------------------------------------


def test_parts_of_a_stacked_layer_keep_rank_rows_and_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    first, last = (
        LoraLayer(torch.randn(2, 5, generator=generator), torch.randn(rows, 2, generator=generator), 3.0)
        for rows in (4, 6)
    )
    whole = stack([first, None, last], [4, 7, 6])
    assert (whole.down.shape, whole.up.shape, whole.alpha) == ((4, 5), (17, 4), 6.0)
    assert_close(whole.delta(), torch.cat([first.delta(), torch.zeros(7, 5), last.delta()]))


def test_layers_that_were_not_adapted_are_left_alone(tmp_path: Path) -> None:
    source = family_source("FluxTransformer2DModel", tmp_path)
    for name in [key for key in source.weights if "proj_mlp" in key or "blocks.0." not in key]:
        del source.weights[name]
    path = written(ComfyUi(), source, tmp_path / "out")
    assert ComfyUi().weight_difference(source, tmp_path / "out") < 1e-5  # type: ignore[operator]
    tensors = load_file(path)
    assert tensors["diffusion_model.single_blocks.0.linear1.lora_B.weight"].shape == (3 * 3072 + 12288, 3 * 4)
    assert not any("blocks.1." in key for key in tensors)


def test_the_keys_and_alphas_of_comfyui(tmp_path: Path) -> None:
    source = family_source("FluxTransformer2DModel", tmp_path, rank=4, alpha=7.0)
    tensors = load_file(written(ComfyUi(), source, tmp_path / "out"))
    attention = "diffusion_model.double_blocks.1.txt_attn."
    assert tensors[f"{attention}qkv.lora_A.weight"].shape == (12, 8)
    assert tensors[f"{attention}qkv.lora_B.weight"].shape == (3 * 3072, 12)
    assert tensors[f"{attention}qkv.alpha"].item() == 21.0
    assert tensors[f"{attention}proj.lora_A.weight"].shape == (4, 8)
    assert tensors[f"{attention}proj.alpha"].item() == 7.0


def test_the_keys_and_texts_of_kohya(tmp_path: Path) -> None:
    source = family_source("SD3Transformer2DModel", tmp_path, rank=4, alpha=7.0)
    path = written(Kohya(), source, tmp_path / "out")
    tensors, texts = load_file(path), read_header(path)
    name = "lora_unet_joint_blocks_0_x_block_attn2_qkv"
    assert tensors[f"{name}.lora_down.weight"].shape == (12, 8)
    assert tensors[f"{name}.lora_up.weight"].shape == (3 * 24, 12)
    assert tensors[f"{name}.alpha"].item() == 21.0
    assert texts["ss_v2"] == "False"
    assert texts["ss_network_module"] == "networks.lora_sd3"
    assert (texts["ss_network_dim"], texts["ss_network_alpha"]) == ("4", "7.0")
    assert texts["ss_base_model_version"] == "3-5-medium"
    assert texts["modelspec.architecture"] == "stable-diffusion-v3.5-medium/lora"
    assert texts["modelspec.hash_sha256"] == "0x" + tensor_sha256(path)


@pytest.mark.parametrize(
    ("class_name", "config", "identifier"),
    [
        ("FluxTransformer2DModel", {"guidance_embeds": True}, "flux-1-dev"),
        ("FluxTransformer2DModel", {"guidance_embeds": False}, "flux-1-schnell"),
        ("Flux2Transformer2DModel", {"guidance_embeds": True}, "Flux.2-dev"),
        (
            "Flux2Transformer2DModel",
            {"guidance_embeds": False, "num_attention_heads": 24, "attention_head_dim": 128},
            "Flux.2-klein-4b",
        ),
        (
            "Flux2Transformer2DModel",
            {"guidance_embeds": False, "num_attention_heads": 32, "attention_head_dim": 128},
            "Flux.2-klein-9b",
        ),
        ("SD3Transformer2DModel", {}, "stable-diffusion-v3-medium"),
        ("SD3Transformer2DModel", {"qk_norm": "rms_norm"}, "stable-diffusion-v3.5-large"),
        (
            "SD3Transformer2DModel",
            {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
            "stable-diffusion-v3.5-medium",
        ),
        ("ZImageTransformer2DModel", {}, "z-image"),
        ("SomethingNew", {}, "SomethingNew"),
    ],
)
def test_architectures_have_published_identifiers(class_name: str, config: dict[str, Any], identifier: str) -> None:
    assert architecture_id(TransformerFacts(class_name, config, {})) == identifier
    assert (identifier in BASES) == (class_name in NETWORKS)


@pytest.mark.parametrize("family", NETWORKS)
def test_every_family_of_kohya_has_a_name_of_its_base(tmp_path: Path, family: str) -> None:
    assert training_texts(family_source(family, tmp_path))["ss_base_model_version"] in BASES.values()


@pytest.mark.parametrize(
    ("preset", "method"),
    [("mixgrpo_flash", "MixGRPO"), ("flow_grpo", "GRPO"), ("dance_grpo", "GRPO"), ("diffusion_nft", "DiffusionNFT")],
)
def test_a_file_names_the_method_that_tuned_it(tmp_path: Path, preset: str, method: str) -> None:
    any_source = family_source("FluxTransformer2DModel", tmp_path)
    source = replace(any_source, settings=PRESETS[preset].make())
    source.__dict__["facts"] = any_source.facts
    assert header(source, "lora")["modelspec.description"].startswith(f"Tuned with {method} from rewards")
    assert training_texts(source)["ss_training_comment"].startswith(f"{method} on")


@pytest.mark.parametrize("family", NETWORKS)
def test_the_card_of_a_kohya_file_names_the_programs_that_read_all_of_it(tmp_path: Path, family: str) -> None:
    text = Kohya().how_to_use(family_source(family, tmp_path))
    assert ("musubi-tuner" in text) == (family == "ZImageTransformer2DModel")
    assert ("`models/loras`" in text) == (family != "ZImageTransformer2DModel")


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_family_without_published_names_is_refused(tmp_path: Path, format: str) -> None:
    source = family_source("SanaTransformer2DModel", tmp_path)
    with pytest.raises(ExportError, match="no published names for the layers of a SanaTransformer2DModel"):
        FORMATS[format].write(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_without_a_published_name_is_refused(tmp_path: Path) -> None:
    source = family_source("SD3Transformer2DModel", tmp_path)
    source.weights["new_layer.lora_A.weight"] = torch.zeros(4, 8)
    source.weights["new_layer.lora_B.weight"] = torch.zeros(8, 4)
    with pytest.raises(ExportError, match="no published name for the layer new_layer of a SD3Transformer2DModel"):
        ComfyUi().write(source, tmp_path)


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        ("diffusion_model.single_blocks.1.linear1.alpha", "double"),
        ("diffusion_model.single_blocks.1.linear1.alpha", "drop"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight", "roll"),
        ("diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight", "roll"),
        ("diffusion_model.img_in.lora_B.weight", "double"),
    ],
)
def test_a_file_that_says_something_else_is_not_given_out(tmp_path: Path, key: str, damage: str) -> None:
    source = family_source("FluxTransformer2DModel", tmp_path)
    path = written(ComfyUi(), source, tmp_path / "out")
    tensors = load_file(path)
    tensor = tensors.pop(key)
    if damage != "drop":
        tensors[key] = 2 * tensor if damage == "double" else tensor.roll(len(tensor) // 2, 0)
    save_file(tensors, path)
    with pytest.raises(ExportError, match="changes the layer"):
        ComfyUi().weight_difference(source, tmp_path / "out")
