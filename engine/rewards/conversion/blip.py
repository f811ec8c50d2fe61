"""ImageReward's checkpoint as the parts of transformers' BLIP that it fits exactly, and its head.

The number of heads leaves no trace in the weights: BLIP has 64 channels a head in both encoders; a `med_config.json`
beside the checkpoint says otherwise for the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.quiet import quiet_libraries
from engine.rewards.conversion.checkpoint_files import ConversionError, Tensors, check_names
from engine.rewards.image_reward import MODEL_TYPE, ImageRewardModel
from engine.rewards.linear_head import head_widths, renumbered

CONFIG_NAME = "med_config.json"
WHAT = "ImageReward checkpoint"

_HEAD_WIDTH = 64
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
# Trained for other tasks of BLIP, and not part of the score.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
_VISION_WHOLE = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_VISION_BLOCK = {
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "mlp.": "mlp.",
}


def is_image_reward(tensors: Tensors) -> bool:
    """Whether these are ImageReward's weights by its authors' names."""
    return any(key.startswith(_VISION) for key in tensors)


def image_reward_parts(tensors: Tensors, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors for `ImageRewardModel`. Raises ConversionError for what is no whole one."""
    used = {key: value for key, value in tensors.items() if not key.startswith(_UNUSED)}
    try:
        head = renumbered(used, _HEAD)
        config = {
            "model_type": MODEL_TYPE, "head": head_widths(head), "vision": _vision_config(used),
            "text": _text_config(used, _read_description(path)),
        }  # fmt: skip
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path} is not a whole {WHAT} ({error}). Fetch it again.") from error
    renamed = dict(_renamed(used)) | {f"head.{key}": value for key, value in head.items()}
    with quiet_libraries(), torch.device("meta"):
        model = ImageRewardModel(config)
    check_names(renamed, {key: tuple(value.shape) for key, value in model.state_dict().items()}, path, WHAT)
    return config, {key: value.contiguous() for key, value in renamed.items()}


def _vision_config(tensors: Tensors) -> dict[str, Any]:
    width, _, patch, _ = tensors[f"{_VISION}patch_embed.proj.weight"].shape
    return {
        "hidden_size": width, "patch_size": patch, "num_attention_heads": _num_heads(width, None),
        "image_size": patch * isqrt(tensors[f"{_VISION}pos_embed"].shape[1] - 1),
        "num_hidden_layers": _num_layers(tensors, f"{_VISION}blocks."),
        "intermediate_size": tensors[f"{_VISION}blocks.0.mlp.fc1.weight"].shape[0],
        "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    }  # fmt: skip


def _text_config(tensors: Tensors, said: dict[str, Any]) -> dict[str, Any]:
    vocabulary, width = tensors[f"{_TEXT}embeddings.word_embeddings.weight"].shape
    layer = f"{_TEXT}encoder.layer.0."
    return {
        "vocab_size": vocabulary, "hidden_size": width,
        "num_attention_heads": _num_heads(width, said.get("num_attention_heads")),
        "encoder_hidden_size": tensors[f"{layer}crossattention.self.key.weight"].shape[1],
        "intermediate_size": tensors[f"{layer}intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _num_layers(tensors, f"{_TEXT}encoder.layer."),
        "max_position_embeddings": tensors[f"{_TEXT}embeddings.position_embeddings.weight"].shape[0],
        "hidden_act": said.get("hidden_act", "gelu"), "layer_norm_eps": said.get("layer_norm_eps", 1e-12),
        "is_decoder": True,
    }  # fmt: skip


def _read_description(path: Path) -> dict[str, Any]:
    beside = path.parent / CONFIG_NAME
    if not beside.is_file():
        return {}
    try:
        return dict(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{beside} is damaged; fetch it again.") from error


def _num_heads(width: int, said: int | None) -> int:
    num_heads = said or width // _HEAD_WIDTH
    if num_heads < 1 or width % num_heads:
        raise ConversionError(
            f"How many heads {width} channels of attention have cannot be told from the weights; put the model's "
            f"{CONFIG_NAME} beside the checkpoint."
        )
    return num_heads


def _num_layers(tensors: Tensors, prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in tensors if key.startswith(prefix)})


def _renamed(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the encoders under our name; what has none keeps its own."""
    for key, tensor in tensors.items():
        if key.startswith(_TEXT):
            yield f"text.{key.removeprefix(_TEXT)}", tensor
        elif key.startswith(_VISION):
            yield f"vision.{_vision_name(key.removeprefix(_VISION))}", tensor
        elif not key.startswith(_HEAD):
            yield key, tensor


def _vision_name(key: str) -> str:
    if not key.startswith("blocks."):
        return _VISION_WHOLE.get(key, key)
    _, number, rest = key.split(".", 2)
    for old, new in _VISION_BLOCK.items():
        if rest.startswith(old):
            return f"encoder.layers.{number}.{new}{rest.removeprefix(old)}"
    return key
