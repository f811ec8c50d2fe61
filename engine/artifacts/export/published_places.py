"""Where the programs look for a layer of diffusers in a published checkpoint: what an export is read back by.

It shares nothing with native_names.py, which writes: there layers are stacked, here rows are cut out at offsets that
come from the configuration, as the programs do it. The rules are those of

- FLUX.1, FLUX.2, Chroma: `flux_to_diffusers` in ComfyUI's comfy/utils.py; Chroma's guidance layers, FLUX.2's modulation
  and its embedders: diffusers' conversion of the published file (loaders/single_file_utils.py)
- Stable Diffusion 3: `mmdit_to_diffusers` in comfy/utils.py; that the last block's context modulation has shift and
  scale the other way round, and what a second attention is called: diffusers' conversion
- Lumina 2: diffusers' conversion
- HunyuanImage: the names of ComfyUI's own model (comfy/ldm/hunyuan_video/model.py)
- Qwen-Image, Z-Image: the names are diffusers' own (`model_lora_keys_unet` in ComfyUI's comfy/lora.py, musubi-tuner's
  convert_lora.py)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.artifacts.export.transformer_facts import TransformerFacts


@dataclass(frozen=True)
class Place:
    """Rows of a published layer.

    Attributes:
        layer: its published name.
        start: the first row.
        swapped: its two halves change places on the way to diffusers.
    """

    layer: str
    start: int = 0
    swapped: bool = False


# A rule: a pattern of diffusers' name, the published name, and at which row it starts, in widths of q and of k.
Rule = tuple[str, str, tuple[int, int]]
_WHOLE = (0, 0)


def _joint_attention(block: str, image: str, text: str) -> list[Rule]:
    """Rules of a block in which image and text have projections of their own."""
    rules: list[Rule] = []
    for position, (own, added) in enumerate((("to_q", "add_q_proj"), ("to_k", "add_k_proj"), ("to_v", "add_v_proj"))):
        start = (min(position, 1), max(position - 1, 0))
        rules += [(rf"{block}attn\.{own}", image + "qkv", start), (rf"{block}attn\.{added}", text + "qkv", start)]
    return [
        *rules,
        (rf"{block}attn\.to_out\.0", image + "proj", _WHOLE),
        (rf"{block}attn\.to_add_out", text + "proj", _WHOLE),
    ]


_DOUBLE, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
_FLUX: list[Rule] = [
    *_joint_attention(_DOUBLE, r"double_blocks.\1.img_attn.", r"double_blocks.\1.txt_attn."),
    (_DOUBLE + r"ff\.(?:net\.0\.proj|linear_in)", r"double_blocks.\1.img_mlp.0", _WHOLE),
    (_DOUBLE + r"ff\.(?:net\.2|linear_out)", r"double_blocks.\1.img_mlp.2", _WHOLE),
    (_DOUBLE + r"ff_context\.(?:net\.0\.proj|linear_in)", r"double_blocks.\1.txt_mlp.0", _WHOLE),
    (_DOUBLE + r"ff_context\.(?:net\.2|linear_out)", r"double_blocks.\1.txt_mlp.2", _WHOLE),
    (_DOUBLE + r"norm1\.linear", r"double_blocks.\1.img_mod.lin", _WHOLE),
    (_DOUBLE + r"norm1_context\.linear", r"double_blocks.\1.txt_mod.lin", _WHOLE),
    (_SINGLE + r"attn\.to_q", r"single_blocks.\1.linear1", _WHOLE),
    (_SINGLE + r"attn\.to_k", r"single_blocks.\1.linear1", (1, 0)),
    (_SINGLE + r"attn\.to_v", r"single_blocks.\1.linear1", (1, 1)),
    (_SINGLE + r"proj_mlp", r"single_blocks.\1.linear1", (1, 2)),
    (_SINGLE + r"attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1", _WHOLE),
    (_SINGLE + r"(?:proj_out|attn\.to_out)", r"single_blocks.\1.linear2", _WHOLE),
    (_SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.lin", _WHOLE),
    (r"x_embedder", "img_in", _WHOLE),
    (r"context_embedder", "txt_in", _WHOLE),
    (r"time_(?:text|guidance)_embed\.timestep_embedder\.linear_1", "time_in.in_layer", _WHOLE),
    (r"time_(?:text|guidance)_embed\.timestep_embedder\.linear_2", "time_in.out_layer", _WHOLE),
    (r"time_(?:text|guidance)_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer", _WHOLE),
    (r"time_(?:text|guidance)_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer", _WHOLE),
    (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer", _WHOLE),
    (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer", _WHOLE),
    (
        r"(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)\.linear",
        r"\1.lin",
        _WHOLE,
    ),
    (r"distilled_guidance_layer\.(in_proj|out_proj)", r"distilled_guidance_layer.\1", _WHOLE),
    (r"distilled_guidance_layer\.layers\.(\d+)\.linear_1", r"distilled_guidance_layer.layers.\1.in_layer", _WHOLE),
    (r"distilled_guidance_layer\.layers\.(\d+)\.linear_2", r"distilled_guidance_layer.layers.\1.out_layer", _WHOLE),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1", _WHOLE),
    (r"proj_out", "final_layer.linear", _WHOLE),
]
_REFINER = r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\."
_REFINED = r"txt_in.individual_token_refiner.blocks.\1."
_HUNYUAN_IMAGE: list[Rule] = [
    (_REFINER + r"attn\.to_q", _REFINED + "self_attn.qkv", _WHOLE),
    (_REFINER + r"attn\.to_k", _REFINED + "self_attn.qkv", (1, 0)),
    (_REFINER + r"attn\.to_v", _REFINED + "self_attn.qkv", (1, 1)),
    (_REFINER + r"attn\.to_out\.0", _REFINED + "self_attn.proj", _WHOLE),
    (_REFINER + r"ff\.net\.0\.proj", _REFINED + "mlp.0", _WHOLE),
    (_REFINER + r"ff\.net\.2", _REFINED + "mlp.2", _WHOLE),
    (_REFINER + r"norm_out\.linear", _REFINED + "adaLN_modulation.1", _WHOLE),
    (r"context_embedder\.proj_in", "txt_in.input_embedder", _WHOLE),
    (r"context_embedder\.time_text_embed\.timestep_embedder\.linear_1", "txt_in.t_embedder.in_layer", _WHOLE),
    (r"context_embedder\.time_text_embed\.timestep_embedder\.linear_2", "txt_in.t_embedder.out_layer", _WHOLE),
    (r"context_embedder\.time_text_embed\.text_embedder\.linear_1", "txt_in.c_embedder.in_layer", _WHOLE),
    (r"context_embedder\.time_text_embed\.text_embedder\.linear_2", "txt_in.c_embedder.out_layer", _WHOLE),
    (r"context_embedder_2\.linear_([123])", r"byt5_in.fc\1", _WHOLE),
    (r"time_guidance_embed\.timestep_embedder_r\.linear_1", "time_r_in.in_layer", _WHOLE),
    (r"time_guidance_embed\.timestep_embedder_r\.linear_2", "time_r_in.out_layer", _WHOLE),
    *_FLUX,
]
_STABLE_DIFFUSION_3: list[Rule] = [
    *_joint_attention(_DOUBLE, r"joint_blocks.\1.x_block.attn.", r"joint_blocks.\1.context_block.attn."),
    (_DOUBLE + r"attn2\.to_q", r"joint_blocks.\1.x_block.attn2.qkv", _WHOLE),
    (_DOUBLE + r"attn2\.to_k", r"joint_blocks.\1.x_block.attn2.qkv", (1, 0)),
    (_DOUBLE + r"attn2\.to_v", r"joint_blocks.\1.x_block.attn2.qkv", (1, 1)),
    (_DOUBLE + r"attn2\.to_out\.0", r"joint_blocks.\1.x_block.attn2.proj", _WHOLE),
    (_DOUBLE + r"ff\.net\.0\.proj", r"joint_blocks.\1.x_block.mlp.fc1", _WHOLE),
    (_DOUBLE + r"ff\.net\.2", r"joint_blocks.\1.x_block.mlp.fc2", _WHOLE),
    (_DOUBLE + r"ff_context\.net\.0\.proj", r"joint_blocks.\1.context_block.mlp.fc1", _WHOLE),
    (_DOUBLE + r"ff_context\.net\.2", r"joint_blocks.\1.context_block.mlp.fc2", _WHOLE),
    (_DOUBLE + r"norm1\.linear", r"joint_blocks.\1.x_block.adaLN_modulation.1", _WHOLE),
    (_DOUBLE + r"norm1_context\.linear", r"joint_blocks.\1.context_block.adaLN_modulation.1", _WHOLE),
    (r"context_embedder", "context_embedder", _WHOLE),
    (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0", _WHOLE),
    (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2", _WHOLE),
    (r"time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0", _WHOLE),
    (r"time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2", _WHOLE),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1", _WHOLE),
    (r"proj_out", "final_layer.linear", _WHOLE),
]
_LUMINA_BLOCK = r"(layers|noise_refiner|context_refiner)\.(\d+)\."
_LUMINA_2: list[Rule] = [
    (_LUMINA_BLOCK + r"attn\.to_q", r"\1.\2.attention.qkv", _WHOLE),
    (_LUMINA_BLOCK + r"attn\.to_k", r"\1.\2.attention.qkv", (1, 0)),
    (_LUMINA_BLOCK + r"attn\.to_v", r"\1.\2.attention.qkv", (1, 1)),
    (_LUMINA_BLOCK + r"attn\.to_out\.0", r"\1.\2.attention.out", _WHOLE),
    (_LUMINA_BLOCK + r"feed_forward\.linear_([123])", r"\1.\2.feed_forward.w\3", _WHOLE),
    (_LUMINA_BLOCK + r"norm1\.linear", r"\1.\2.adaLN_modulation.1", _WHOLE),
    (r"x_embedder", "x_embedder", _WHOLE),
    (r"time_caption_embed\.caption_embedder\.1", "cap_embedder.1", _WHOLE),
    (r"time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0", _WHOLE),
    (r"time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2", _WHOLE),
    (r"norm_out\.linear_1", "final_layer.adaLN_modulation.1", _WHOLE),
    (r"norm_out\.linear_2", "final_layer.linear", _WHOLE),
]
_OWN_NAMES: list[Rule] = [(r"(.+)", r"\1", _WHOLE)]

PUBLISHED_RULES: Mapping[str, list[Rule]] = {
    "FluxTransformer2DModel": _FLUX,
    "Flux2Transformer2DModel": _FLUX,
    "ChromaTransformer2DModel": _FLUX,
    "SD3Transformer2DModel": _STABLE_DIFFUSION_3,
    "Lumina2Transformer2DModel": _LUMINA_2,
    "QwenImageTransformer2DModel": _OWN_NAMES,
    "ZImageTransformer2DModel": _OWN_NAMES,
    "HunyuanImageTransformer2DModel": _HUNYUAN_IMAGE,
}


def place_of(name: str, facts: TransformerFacts) -> Place | None:
    """Where the layer that diffusers calls `name` lies; None if the rules do not know it."""
    for pattern, published, (num_q, num_k) in PUBLISHED_RULES[facts.class_name]:
        match = re.fullmatch(pattern, name)
        if match is not None:
            query, key = _attention_widths(facts.config)
            start = num_q * query + num_k * key
            return Place(match.expand(published), start, _is_swapped(name, facts))
    return None


def _attention_widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of a query projection, and of a key or value projection."""
    if "hidden_size" in config:  # Lumina 2: fewer heads have keys and values
        head = config["hidden_size"] // config["num_attention_heads"]
        return config["hidden_size"], head * config["num_kv_heads"]
    if "attention_head_dim" not in config:  # Z-Image, whose projections are separate
        return 0, 0
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return width, width


def _is_swapped(name: str, facts: TransformerFacts) -> bool:
    if facts.class_name in ("FluxTransformer2DModel", "Flux2Transformer2DModel", "HunyuanImageTransformer2DModel"):
        return name == "norm_out.linear"
    if facts.class_name == "SD3Transformer2DModel":
        last = facts.config["num_layers"] - 1
        return name in ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    return False
