"""Facts about export formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExportPrecision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ExportInfo:
    """What a creator should know of an export format before choosing it.

    Attributes:
        file_names: a fitting name for the exported file, by what was tuned; where there is none, it cannot be had.
        models: the families that can be had in it; None: all.
    """

    title: str
    help: str
    file_names: dict[Literal["lora", "full"], str]
    models: frozenset[str] | None = None


# The families for whose layers there are names that ComfyUI and kohya's trainers are known to read.
PUBLISHED = frozenset(
    {"builtin", "flux", "flux2", "flux2_klein", "sd3", "chroma", "lumina2", "qwen_image", "z_image"}
)
COMFYUI = PUBLISHED | {"hunyuan_image"}
EXPORT_INFO: dict[str, ExportInfo] = {
    "diffusers": ExportInfo(
        "diffusers",
        "What was learned, as diffusers loads it: a LoRA file, or the whole transformer if all weights were tuned.",
        {"lora": "pytorch_lora_weights.safetensors", "full": "transformer.zip"},
    ),
    "comfyui": ExportInfo(
        "ComfyUI LoRA",
        "The LoRA for ComfyUI's Load LoRA node: the published checkpoint's layer names, the scale in the file.",
        {"lora": "comfyui_lora.safetensors"},
        COMFYUI,
    ),
    "kohya": ExportInfo(
        "kohya LoRA",
        "The LoRA as kohya's trainers write it, for sd-scripts, Forge, and what else reads their files.",
        {"lora": "kohya_lora.safetensors"},
        PUBLISHED,
    ),
    "merged": ExportInfo(
        "Whole transformer",
        "The tuned transformer complete, the LoRA added into its weights: larger, and nothing else to load.",
        {"lora": "transformer.zip", "full": "transformer.zip"},
    ),
    "pipeline": ExportInfo(
        "Whole pipeline",
        "Everything that draws, as a diffusers folder: text encoders, autoencoder and the tuned transformer.",
        {"lora": "pipeline.zip", "full": "pipeline.zip"},
    ),
}


def why_not(format: str, method: Literal["lora", "full"], model: str) -> str | None:
    """Why a run that tuned a family by a method cannot be exported in a format, in a sentence; None if it can."""
    info = EXPORT_INFO[format]
    if method not in info.file_names:
        return f"{info.title}: this run tuned all weights, so there is no LoRA; export it as diffusers or pipeline."
    if info.models is not None and model not in info.models:
        return (
            f"{info.title}: there are no published names for the layers of {model} that its programs would read; "
            "export it as diffusers, merged or pipeline."
        )
    return None
