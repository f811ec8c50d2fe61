"""ModelSpec's architecture identifiers: by what a program must know to run a model, not by who tuned it.

They are those that SwarmUI looks for (T2IModelClassSorter.cs), which reads sd-scripts' own (library/sai_model_spec.py)
as well; FLUX.2 klein's are musubi-tuner's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.artifacts.export.transformer_facts import TransformerFacts


def _flux(config: Mapping[str, Any]) -> str:
    return "flux-1-dev" if config["guidance_embeds"] else "flux-1-schnell"


def _flux_2(config: Mapping[str, Any]) -> str:
    """Klein has no embedded guidance, and 4096 channels where it has 9 billion weights."""
    if config.get("guidance_embeds", True):
        return "Flux.2-dev"
    num_channels = config["num_attention_heads"] * config["attention_head_dim"]
    return "Flux.2-klein-9b" if num_channels >= 4096 else "Flux.2-klein-4b"


def _stable_diffusion_3(config: Mapping[str, Any]) -> str:
    """3.5 has query and key norms, and its medium model second attentions."""
    if config.get("dual_attention_layers"):
        return "stable-diffusion-v3.5-medium"
    return "stable-diffusion-v3.5-large" if config.get("qk_norm") else "stable-diffusion-v3-medium"


def _always(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda config: name


ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux_2,
    "ChromaTransformer2DModel": _always("chroma"),
    "SD3Transformer2DModel": _stable_diffusion_3,
    "Lumina2Transformer2DModel": _always("lumina-2"),
    "QwenImageTransformer2DModel": _always("qwen-image"),
    "ZImageTransformer2DModel": _always("z-image"),
    "SanaTransformer2DModel": _always("nvidia-sana-1600"),
    "HunyuanImageTransformer2DModel": _always("hunyuan-image-2_1"),
}


def architecture_id(facts: TransformerFacts) -> str:
    """The identifier of a transformer's architecture; diffusers' class name for one that has none."""
    if facts.class_name not in ARCHITECTURES:
        return facts.class_name
    return ARCHITECTURES[facts.class_name](facts.config)
