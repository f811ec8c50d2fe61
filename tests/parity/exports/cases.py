"""The transformers that ComfyUI was given LoRAs of: as small as its own code can hold, two sizes a family or more."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from engine.artifacts.export.comfyui import ComfyUi
from engine.artifacts.export.kohya import Kohya
from engine.artifacts.export.published_lora import PublishedLora
from tests.engine.artifacts.families import family_facts, lora_source

RANK, ALPHA = 3, 7.0
FOLDER = Path(__file__).parent
FORMATS: dict[str, PublishedLora] = {"comfyui": ComfyUi(), "kohya": Kohya()}


@dataclass(frozen=True)
class Case:
    """One transformer.

    Attributes:
        class_name, config: diffusers' class, and what it is built with.
    """

    class_name: str
    config: dict[str, Any]


def _flux(heads: int, double: int, single: int, guidance: bool) -> Case:
    return Case("FluxTransformer2DModel", {
        "in_channels": 16, "num_layers": double, "num_single_layers": single, "attention_head_dim": 128,
        "num_attention_heads": heads, "joint_attention_dim": 24, "pooled_projection_dim": 20,
        "guidance_embeds": guidance, "axes_dims_rope": (16, 56, 56),
    })  # fmt: skip


def _flux2(heads: int, double: int, single: int, guidance: bool) -> Case:
    return Case("Flux2Transformer2DModel", {
        "in_channels": 12, "num_layers": double, "num_single_layers": single, "attention_head_dim": 128,
        "num_attention_heads": heads, "joint_attention_dim": 40, "timestep_guidance_channels": 256,
        "axes_dims_rope": (32, 32, 32, 32), "guidance_embeds": guidance,
    })  # fmt: skip


def _sd3(heads: int, **more: Any) -> Case:
    """As many blocks as heads: ComfyUI tells one from the other."""
    return Case("SD3Transformer2DModel", {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": heads,
        "attention_head_dim": 64, "num_attention_heads": heads, "joint_attention_dim": 40,
        "caption_projection_dim": 64 * heads, "pooled_projection_dim": 24, "pos_embed_max_size": 16, **more,
    })  # fmt: skip


def _lumina2(heads: int, kv_heads: int, layers: int) -> Case:
    return Case("Lumina2Transformer2DModel", {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 96 * heads, "num_layers": layers,
        "num_refiner_layers": 2, "num_attention_heads": heads, "num_kv_heads": kv_heads, "multiple_of": 256,
        "norm_eps": 1e-5, "axes_dim_rope": (32, 32, 32), "axes_lens": (300, 512, 512), "cap_feat_dim": 40,
    })  # fmt: skip


def _qwen(heads: int, layers: int) -> Case:
    return Case("QwenImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": layers, "attention_head_dim": 128,
        "num_attention_heads": heads, "joint_attention_dim": 40, "axes_dims_rope": (16, 56, 56),
    })  # fmt: skip


def _hunyuan(heads: int, double: int, single: int, distilled: bool) -> Case:
    return Case("HunyuanImageTransformer2DModel", {
        "in_channels": 8, "out_channels": 8, "num_attention_heads": heads, "attention_head_dim": 128,
        "num_layers": double, "num_single_layers": single, "num_refiner_layers": 2, "mlp_ratio": 4.0,
        "patch_size": (1, 1), "qk_norm": "rms_norm", "guidance_embeds": distilled, "text_embed_dim": 40,
        "text_embed_2_dim": 1472, "rope_theta": 256.0, "rope_axes_dim": (64, 64), "use_meanflow": distilled,
    })  # fmt: skip


CASES: dict[str, Case] = {
    "FLUX.1 dev": _flux(2, 2, 3, guidance=True),
    "FLUX.1 schnell": _flux(1, 3, 1, guidance=False),
    "FLUX.2": _flux2(2, 2, 3, guidance=True),
    "FLUX.2 klein": _flux2(1, 1, 2, guidance=False),
    # Its modulations have a published number of rows, from which ComfyUI counts back.
    "Chroma": Case("ChromaTransformer2DModel", {
        "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
        "num_attention_heads": 1, "joint_attention_dim": 40, "axes_dims_rope": (16, 56, 56),
        "approximator_num_channels": 64, "approximator_hidden_dim": 48, "approximator_layers": 3,
    }),
    "SD3": _sd3(3),
    "SD3.5 large": _sd3(4, qk_norm="rms_norm"),
    "SD3.5 medium": _sd3(3, qk_norm="rms_norm", dual_attention_layers=(0, 1)),
    "Lumina 2": _lumina2(6, 2, 2),
    "Qwen-Image": _qwen(1, 3),
    # The narrowest whose feed-forward layers and time embedding ComfyUI makes as wide as diffusers does.
    "Z-Image": Case("ZImageTransformer2DModel", {
        "in_channels": 4, "dim": 1152, "n_layers": 1, "n_refiner_layers": 2, "n_heads": 9, "n_kv_heads": 9,
        "cap_feat_dim": 40, "axes_dims": [32, 48, 48], "axes_lens": [128, 64, 64],
    }),
    "HunyuanImage": _hunyuan(1, 2, 2, distilled=False),
    "HunyuanImage distilled": _hunyuan(2, 1, 1, distilled=True),
}  # fmt: skip


def written(case: Case, format: str, folder: Path) -> Path:
    """The file of a LoRA of every layer, its alpha not its rank."""
    source = lora_source(family_facts(case.class_name, case.config), folder, RANK, ALPHA)
    FORMATS[format].write(source, folder)
    return FORMATS[format].path(folder)


def digest(path: Path) -> str:
    """Of a file's tensors, by their names; what the header says is not in it."""
    total = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.numpy().tobytes())
    return total.hexdigest()
