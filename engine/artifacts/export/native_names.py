"""How published checkpoints name the layers of diffusers' transformers: what ComfyUI's and kohya's files are made of.

A published layer is one of diffusers', or several stacked row by row (q, k and v are one layer `qkv`). A family that is
not in the table has no names that those programs are known to load.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from engine.artifacts.export.lora_layers import LoraLayer, lora_layers, stack
from engine.artifacts.export.source import ExportError, ExportSource
from engine.artifacts.export.transformer_facts import TransformerFacts

_BLOCK, _LAST = "{i}", "{last}"


@dataclass(frozen=True)
class NativeNames:
    """The names of one family.

    Attributes:
        implementation: the code whose names they are.
        layers: published name → diffusers' layers whose rows it stacks; `{i}` is a block's number. Empty: the
            published names are diffusers' own.
        swapped: published names of layers whose halves, shift and scale, diffusers holds the other way round; `{last}`
            is the last block's number.
    """

    implementation: str
    layers: Mapping[str, tuple[str, ...]]
    swapped: frozenset[str] = frozenset()


def _qkv(block: str, names: tuple[str, str, str] = ("to_q", "to_k", "to_v")) -> tuple[str, ...]:
    return tuple(f"{block}.{name}" for name in names)


_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE, _SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"

# The double blocks of the FLUX family, but for the feed-forward layers, which diffusers names differently in each.
_DOUBLE_ATTENTION = {
    "double_blocks.{i}.img_attn.qkv": _qkv(f"{_DOUBLE}.attn"),
    "double_blocks.{i}.txt_attn.qkv": _qkv(f"{_DOUBLE}.attn", _ADDED),
    "double_blocks.{i}.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{i}.txt_attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
}
_BLOCKS = _DOUBLE_ATTENTION | {
    "double_blocks.{i}.img_mlp.0": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.{i}.img_mlp.2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.{i}.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.{i}.txt_mlp.2": (f"{_DOUBLE}.ff_context.net.2",),
    "single_blocks.{i}.linear1": (*_qkv(f"{_SINGLE}.attn"), f"{_SINGLE}.proj_mlp"),
    "single_blocks.{i}.linear2": (f"{_SINGLE}.proj_out",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
}
_FLUX = _BLOCKS | {
    "double_blocks.{i}.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.{i}.txt_mod.lin": (f"{_DOUBLE}.norm1_context.linear",),
    "single_blocks.{i}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_REFINED = "txt_in.individual_token_refiner.blocks.{i}"
_REFINER = "context_embedder.token_refiner.refiner_blocks.{i}"
_HUNYUAN_IMAGE = _BLOCKS | {
    "double_blocks.{i}.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.{i}.txt_mod.lin": (f"{_DOUBLE}.norm1_context.linear",),
    "single_blocks.{i}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "time_r_in.in_layer": ("time_guidance_embed.timestep_embedder_r.linear_1",),
    "time_r_in.out_layer": ("time_guidance_embed.timestep_embedder_r.linear_2",),
    "guidance_in.in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    "txt_in.t_embedder.in_layer": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    "txt_in.t_embedder.out_layer": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
    "txt_in.c_embedder.in_layer": ("context_embedder.time_text_embed.text_embedder.linear_1",),
    "txt_in.c_embedder.out_layer": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    f"{_REFINED}.self_attn.qkv": _qkv(f"{_REFINER}.attn"),
    f"{_REFINED}.self_attn.proj": (f"{_REFINER}.attn.to_out.0",),
    f"{_REFINED}.mlp.0": (f"{_REFINER}.ff.net.0.proj",),
    f"{_REFINED}.mlp.2": (f"{_REFINER}.ff.net.2",),
    f"{_REFINED}.adaLN_modulation.1": (f"{_REFINER}.norm_out.linear",),
    "byt5_in.fc1": ("context_embedder_2.linear_1",),
    "byt5_in.fc2": ("context_embedder_2.linear_2",),
    "byt5_in.fc3": ("context_embedder_2.linear_3",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_CHROMA = _BLOCKS | {
    "distilled_guidance_layer.in_proj": ("distilled_guidance_layer.in_proj",),
    "distilled_guidance_layer.out_proj": ("distilled_guidance_layer.out_proj",),
    "distilled_guidance_layer.layers.{i}.in_layer": ("distilled_guidance_layer.layers.{i}.linear_1",),
    "distilled_guidance_layer.layers.{i}.out_layer": ("distilled_guidance_layer.layers.{i}.linear_2",),
}
_FLUX_2 = _DOUBLE_ATTENTION | {
    "double_blocks.{i}.img_mlp.0": (f"{_DOUBLE}.ff.linear_in",),
    "double_blocks.{i}.img_mlp.2": (f"{_DOUBLE}.ff.linear_out",),
    "double_blocks.{i}.txt_mlp.0": (f"{_DOUBLE}.ff_context.linear_in",),
    "double_blocks.{i}.txt_mlp.2": (f"{_DOUBLE}.ff_context.linear_out",),
    "single_blocks.{i}.linear1": (f"{_SINGLE}.attn.to_qkv_mlp_proj",),
    "single_blocks.{i}.linear2": (f"{_SINGLE}.attn.to_out",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_SD3 = {
    "joint_blocks.{i}.x_block.attn.qkv": _qkv(f"{_DOUBLE}.attn"),
    "joint_blocks.{i}.x_block.attn2.qkv": _qkv(f"{_DOUBLE}.attn2"),
    "joint_blocks.{i}.context_block.attn.qkv": _qkv(f"{_DOUBLE}.attn", _ADDED),
    "joint_blocks.{i}.x_block.attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "joint_blocks.{i}.x_block.attn2.proj": (f"{_DOUBLE}.attn2.to_out.0",),
    "joint_blocks.{i}.context_block.attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "joint_blocks.{i}.x_block.mlp.fc1": (f"{_DOUBLE}.ff.net.0.proj",),
    "joint_blocks.{i}.x_block.mlp.fc2": (f"{_DOUBLE}.ff.net.2",),
    "joint_blocks.{i}.context_block.mlp.fc1": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "joint_blocks.{i}.context_block.mlp.fc2": (f"{_DOUBLE}.ff_context.net.2",),
    "joint_blocks.{i}.x_block.adaLN_modulation.1": (f"{_DOUBLE}.norm1.linear",),
    "joint_blocks.{i}.context_block.adaLN_modulation.1": (f"{_DOUBLE}.norm1_context.linear",),
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_LUMINA_2 = {
    f"{part}.{{i}}.{published}": names
    for part in ("layers", "noise_refiner", "context_refiner")
    for published, names in {
        "attention.qkv": _qkv(f"{part}.{{i}}.attn"),
        "attention.out": (f"{part}.{{i}}.attn.to_out.0",),
        "feed_forward.w1": (f"{part}.{{i}}.feed_forward.linear_1",),
        "feed_forward.w2": (f"{part}.{{i}}.feed_forward.linear_2",),
        "feed_forward.w3": (f"{part}.{{i}}.feed_forward.linear_3",),
        "adaLN_modulation.1": (f"{part}.{{i}}.norm1.linear",),
    }.items()
} | {
    "x_embedder": ("x_embedder",),
    "cap_embedder.1": ("time_caption_embed.caption_embedder.1",),
    "t_embedder.mlp.0": ("time_caption_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_caption_embed.timestep_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
    "final_layer.linear": ("norm_out.linear_2",),
}

NATIVE_NAMES: dict[str, NativeNames] = {
    "FluxTransformer2DModel": NativeNames(
        "https://github.com/black-forest-labs/flux", _FLUX, frozenset({"final_layer.adaLN_modulation.1"})
    ),
    "Flux2Transformer2DModel": NativeNames(
        "https://github.com/black-forest-labs/flux2", _FLUX_2, frozenset({"final_layer.adaLN_modulation.1"})
    ),
    "ChromaTransformer2DModel": NativeNames("https://huggingface.co/lodestones/Chroma", _CHROMA),
    "SD3Transformer2DModel": NativeNames(
        "https://github.com/Stability-AI/sd3-ref",
        _SD3,
        frozenset({"final_layer.adaLN_modulation.1", "joint_blocks.{last}.context_block.adaLN_modulation.1"}),
    ),
    "Lumina2Transformer2DModel": NativeNames("https://github.com/Alpha-VLLM/Lumina-Image-2.0", _LUMINA_2),
    "QwenImageTransformer2DModel": NativeNames("https://github.com/QwenLM/Qwen-Image", {}),
    "HunyuanImageTransformer2DModel": NativeNames(
        "https://github.com/comfyanonymous/ComfyUI", _HUNYUAN_IMAGE, frozenset({"final_layer.adaLN_modulation.1"})
    ),
    "ZImageTransformer2DModel": NativeNames("https://github.com/Tongyi-MAI/Z-Image", {}),
}


def native_names(class_name: str, program: str, families: Collection[str]) -> NativeNames:
    """The names of a transformer class. Raises ExportError if it is none of the families that `program` loads."""
    if class_name not in families:
        raise ExportError(
            f"{program} has no published names for the layers of a {class_name}, so a LoRA of it cannot be written in "
            "that format; export it as diffusers, merged or pipeline."
        )
    return NATIVE_NAMES[class_name]


def native_layers(source: ExportSource, program: str, families: Collection[str]) -> dict[str, LoraLayer]:
    """The run's LoRA by published names. Raises ExportError for a family, or a layer, that has none."""
    facts = source.facts
    names, own = native_names(facts.class_name, program, families), lora_layers(source)
    if not names.layers:
        return own
    layers: dict[str, LoraLayer] = {}
    for published, parts in _expanded(names, facts).items():
        if any(part in own for part in parts):
            layers[published] = stack(
                [own.pop(part, None) for part in parts], [facts.layers[part][0] for part in parts]
            )
    if own:
        raise ExportError(
            f"{program} has no published name for the layer {min(own)} of a {facts.class_name}; export it as "
            "diffusers, merged or pipeline."
        )
    swapped = {name.replace(_LAST, str(facts.config.get("num_layers", 0) - 1)) for name in names.swapped}
    return {name: _swap_halves(layer) if name in swapped else layer for name, layer in layers.items()}


def _expanded(names: NativeNames, facts: TransformerFacts) -> dict[str, tuple[str, ...]]:
    """The table with numbers in the blocks' places, as far as the transformer has the layers."""
    every = {
        published.replace(_BLOCK, str(i)): tuple(part.replace(_BLOCK, str(i)) for part in parts)
        for published, parts in names.layers.items()
        for i in (range(facts.num_blocks) if _BLOCK in published else (0,))
    }
    return {published: parts for published, parts in every.items() if all(part in facts.layers for part in parts)}


def _swap_halves(layer: LoraLayer) -> LoraLayer:
    first, second = layer.up.chunk(2)
    return LoraLayer(layer.down, torch.cat([second, first]), layer.alpha)
