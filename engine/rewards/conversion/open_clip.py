"""open_clip's CLIP (HPSv2, DFN and many others) as the CLIPModel of transformers.

Heads and activation leave no trace in the weights. They are those of an `open_clip_config.json` beside the checkpoint,
or else open_clip's own: 64 channels a head but in the wider image encoders, and the exact GELU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from engine.rewards.conversion.checkpoint_files import ConversionError, Tensors, check_names
from engine.rewards.preprocessing import Preprocessing

CONFIG_NAME = "open_clip_config.json"
WHAT = "open_clip checkpoint of a CLIP with a vision transformer"

_HEAD_WIDTH = 64
_WIDER_HEADS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}  # ViT-H, g, G and E of open_clip, by width

_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_TOWERS = {"visual.transformer.resblocks.": "vision_model.encoder.layers.",
           "transformer.resblocks.": "text_model.encoder.layers."}  # fmt: skip


def is_open_clip(tensors: Tensors) -> bool:
    """Whether these are a CLIP's weights by open_clip's names."""
    return "visual.conv1.weight" in tensors


def clip_model(tensors: Tensors, path: Path, description: Mapping[str, Any]) -> CLIPModel:
    """The checkpoint `path` as a CLIPModel in its own precision. Raises ConversionError where it does not fit one.

    `description` is what `open_clip_config.json` says of the model; empty = open_clip's usual.
    """
    # A buffer of the attention mask is saved by some versions; text towers of their own bear a prefix.
    own = {key.removeprefix("text."): value for key, value in tensors.items() if not key.endswith("attn_mask")}
    try:
        config = _config(own, description)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ConversionError(f"{path} is not a whole {WHAT}: {error} is absent or odd. Fetch it again.") from error
    renamed = dict(_renamed(own))
    with torch.device("meta"):
        model = CLIPModel(config)
    check_names(renamed, {key: tuple(value.shape) for key, value in model.state_dict().items()}, path, WHAT)
    dtype = renamed["visual_projection.weight"].dtype
    model.to(dtype).load_state_dict({key: value.to(dtype) for key, value in renamed.items()}, assign=True)
    return model


def read_description(path: Path) -> dict[str, Any]:
    """What lies beside a checkpoint as `open_clip_config.json`, {} if nothing does. Raises ConversionError."""
    beside = path.parent / CONFIG_NAME
    if not beside.is_file():
        return {}
    try:
        return dict(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{beside} is damaged; fetch it again.") from error


def preprocessing(model: CLIPModel, description: Mapping[str, Any]) -> Preprocessing:
    """What open_clip does to images for this model. Raises ConversionError for a way that is not known."""
    said: Mapping[str, Any] = description.get("preprocess_cfg", {})
    mode = said.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash") or said.get("interpolation", "bicubic") != "bicubic":
        raise ConversionError(f"Images are prepared as {dict(said)} for this model, which Palate does not do.")
    side = model.config.vision_config.image_size
    usual = Preprocessing(side, side, side if mode == "shortest" else None, rounds_offset=True)
    return Preprocessing(
        side, side, usual.short_side, tuple(said.get("mean", usual.mean)), tuple(said.get("std", usual.std)),
        rounds_offset=True,
    )  # fmt: skip


def _config(tensors: Tensors, description: Mapping[str, Any]) -> CLIPConfig:
    said: Mapping[str, Any] = description.get("model_cfg", {})
    vision_said, text_said = said.get("vision_cfg", {}), said.get("text_cfg", {})
    activation = "quick_gelu" if said.get("quick_gelu", False) else "gelu"
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    side = patch * isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    context, text_width = tensors["positional_embedding"].shape
    vocabulary = tensors["token_embedding.weight"].shape[0]
    projection = tensors["visual.proj"].shape[1]
    head_width = vision_said.get("head_width", _WIDER_HEADS.get(width, _HEAD_WIDTH))
    vision = {
        "hidden_size": width, "num_attention_heads": _num_heads(width, width // head_width), "image_size": side,
        "patch_size": patch, **_depth(tensors, "visual.transformer.resblocks."),
    }  # fmt: skip
    text = {
        "hidden_size": text_width, "max_position_embeddings": context, "vocab_size": vocabulary,
        "num_attention_heads": _num_heads(text_width, text_said.get("heads", text_width // _HEAD_WIDTH)),
        # open_clip reads the features at the highest token, the last of the vocabulary.
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1,
        **_depth(tensors, "transformer.resblocks."),
    }  # fmt: skip
    shared = {"projection_dim": projection, "hidden_act": activation}
    return CLIPConfig(vision_config=vision | shared, text_config=text | shared, projection_dim=projection)


def _num_heads(width: int, num_heads: int) -> int:
    if num_heads < 1 or width % num_heads:
        raise ConversionError(
            f"How many heads {width} channels of attention have cannot be told from the weights; put the model's "
            f'{CONFIG_NAME} beside the checkpoint (its model_cfg says vision_cfg.head_width and text_cfg.heads).'
        )
    return num_heads


def _depth(tensors: Tensors, prefix: str) -> dict[str, int]:
    """How many blocks a tower has, and how wide their MLPs are."""
    numbers = {int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix)}
    return {"num_hidden_layers": len(numbers), "intermediate_size": tensors[f"{prefix}0.mlp.c_fc.weight"].shape[0]}


def _renamed(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under transformers' name; what has none keeps its own."""
    for key, tensor in tensors.items():
        tower = next((prefix for prefix in _TOWERS if key.startswith(prefix)), None)
        if tower is not None:
            number, _, rest = key.removeprefix(tower).partition(".")
            yield from _renamed_in_block(f"{_TOWERS[tower]}{number}.", rest, tensor)
        elif key in _TRANSPOSED:
            yield _TRANSPOSED[key], tensor.T.contiguous()
        else:
            yield _WHOLE.get(key, key), tensor


def _renamed_in_block(block: str, key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if key in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = key.rpartition("_")[2]
        for name, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{block}self_attn.{name}_proj.{kind}", part.contiguous()
        return
    for old, new in _BLOCK.items():
        if key.startswith(old):
            yield f"{block}{new}{key.removeprefix(old)}", tensor
            return
    yield f"{block}{key}", tensor
