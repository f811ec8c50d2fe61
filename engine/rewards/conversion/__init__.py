"""Published checkpoints of rewards made, once, into folders that the rewards load: safetensors, config, tokenizer.

Which reward a file is of is read from the names in it; of open_clip's, which several rewards share, from the file's
name, or the asker says.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPVisionModelWithProjection

from engine.quiet import quiet_libraries
from engine.rewards.aesthetic import HEAD_NAME
from engine.rewards.conversion import open_clip
from engine.rewards.conversion.blip import image_reward_parts, is_image_reward
from engine.rewards.conversion.checkpoint_files import ConversionError, Tensors, read_checkpoint
from engine.rewards.image_reward import WEIGHTS_NAME
from engine.rewards.linear_head import head_widths, renumbered
from engine.rewards.preprocessing import Preprocessing
from engine.rewards.pretrained import MENDS_PROMPTS, REWARD_FILE_NAME

__all__ = ["BASES", "ConversionError", "Converted", "convert"]

BASES = {
    "hpsv2": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "clip_score": "openai/clip-vit-large-patch14",
    "image_reward": "bert-base-uncased",
    "aesthetic": "openai/clip-vit-large-patch14",
}
"""What a checkpoint lacks is taken from these: the tokenizer, and for `aesthetic` the CLIP beneath the head."""

_AESTHETIC_PREFIX = "layers."
_ADDED_BY_BLIP = ("[DEC]", "[ENC]")
_KNOWN = "HPSv2, ImageReward, LAION's aesthetic heads, and any CLIP of open_clip"


@dataclass(frozen=True)
class Converted:
    """What a conversion made: for which reward, in which folder."""

    reward: str
    folder: Path


def convert(path: Path, out: Path, reward: str | None = None, base: str | None = None) -> Converted:
    """Make the checkpoint `path` into the new folder `out`.

    `reward` says what the file is where it could be of several; `base` is the folder or hub id to take from what the
    checkpoint lacks (BASES unless given). Raises ConversionError, in a sentence, and leaves no folder, if it cannot be.
    """
    if out.exists():
        raise ConversionError(f"{out} exists already; choose a new folder for --out.")
    tensors = read_checkpoint(path)
    recognised = _recognise(tensors, path, reward)
    base = base or BASES[recognised]
    half = out.with_name(f".{out.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        _WRITERS[recognised](tensors, path, half, base)
        description = {"reward": recognised, "file": path.name, "sha256": _sha256(path), "base": base,
                       MENDS_PROMPTS: open_clip.is_open_clip(tensors)}  # fmt: skip
        (half / REWARD_FILE_NAME).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        half.replace(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return Converted(recognised, out)


def _recognise(tensors: Tensors, path: Path, reward: str | None) -> str:
    if open_clip.is_open_clip(tensors):
        possible = ["hpsv2", "clip_score"]
    elif is_image_reward(tensors):
        possible = ["image_reward"]
    elif set(tensors) == {"weight", "bias"} or all(key.startswith(_AESTHETIC_PREFIX) for key in tensors):
        possible = ["aesthetic"]
    else:
        raise ConversionError(
            f"{path} is not a checkpoint that Palate can convert: it holds names such as {next(iter(tensors))}. "
            f"Known are {_KNOWN}."
        )
    if reward is not None and reward not in possible:
        raise ConversionError(f"{path} is not a checkpoint of {reward}, but of {' or '.join(possible)}.")
    if reward is None and len(possible) > 1:
        if path.name.lower().startswith("hps"):
            return "hpsv2"
        raise ConversionError(
            f"{path} is a CLIP of open_clip, which {' and '.join(possible)} could use; say which with --reward."
        )
    return reward or possible[0]


def _write_clip(tensors: Tensors, path: Path, folder: Path, base: str, *, hpsv2: bool) -> None:
    description = open_clip.read_description(path)
    model = open_clip.clip_model(tensors, path, description)
    prepare = open_clip.preprocessing(model, {} if hpsv2 else description)
    _write_tokenizer(folder, base, model.config.text_config.vocab_size)
    with quiet_libraries():
        model.save_pretrained(folder)
    prepare.write(folder)


def _write_hpsv2(tensors: Tensors, path: Path, folder: Path, base: str) -> None:
    _write_clip(tensors, path, folder, base, hpsv2=True)


def _write_clip_score(tensors: Tensors, path: Path, folder: Path, base: str) -> None:
    _write_clip(tensors, path, folder, base, hpsv2=False)


def _write_image_reward(tensors: Tensors, path: Path, folder: Path, base: str) -> None:
    config, parts = image_reward_parts(tensors, path)
    _write_tokenizer(folder, base, config["text"]["vocab_size"], _ADDED_BY_BLIP)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(parts, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    side = config["vision"]["image_size"]
    Preprocessing(side, side, side, rounds_offset=True).write(folder)


def _write_aesthetic(tensors: Tensors, path: Path, folder: Path, base: str) -> None:
    head = dict(tensors)
    try:
        if set(head) == {"weight", "bias"}:
            head = {f"0.{key}": value for key, value in head.items()}
        else:
            head = renumbered(head, _AESTHETIC_PREFIX)
        num_features = head_widths(head)[0]
    except ValueError as error:
        raise ConversionError(f"{path} is not a whole aesthetic head: {error}. Fetch it again.") from error
    encoder = _image_encoder(base)
    if encoder.config.projection_dim != num_features:
        raise ConversionError(
            f"The head in {path} is for a CLIP with {num_features} features; {base} gives "
            f"{encoder.config.projection_dim}. Name the right one with --base."
        )
    with quiet_libraries():
        encoder.save_pretrained(folder)
    save_file({key: value.contiguous() for key, value in head.items()}, folder / HEAD_NAME)
    side = encoder.config.image_size
    Preprocessing(side, side, side, rounds_offset=True).write(folder)


def _image_encoder(base: str) -> Any:
    try:
        with quiet_libraries():
            encoder, info = CLIPVisionModelWithProjection.from_pretrained(base, output_loading_info=True)
    except Exception as error:  # whatever is wrong with the folder, network or file
        raise ConversionError(
            f"The CLIP that the aesthetic head stands on could not be read from {base}; give a folder with "
            "openai/clip-vit-large-patch14, in transformers' form, as --base."
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ConversionError(f"{base} holds no CLIP in transformers' form; give another --base.")
    return encoder


def _write_tokenizer(folder: Path, base: str, num_tokens: int, added: Sequence[str] = ()) -> None:
    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(base)
    except Exception as error:  # see `_image_encoder`
        raise ConversionError(
            f"The tokenizer, which the checkpoint does not contain, could not be read from {base}; give a folder that "
            "holds it (tokenizer.json, or vocab.json with merges.txt, or vocab.txt) as --base."
        ) from error
    tokenizer.add_tokens(list(added), special_tokens=True)
    if len(tokenizer) != num_tokens:
        raise ConversionError(
            f"The tokenizer in {base} knows {len(tokenizer)} tokens, the checkpoint {num_tokens}; name the right one "
            "with --base."
        )
    tokenizer.save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_WRITERS: dict[str, Callable[[Tensors, Path, Path, str], None]] = {
    "hpsv2": _write_hpsv2,
    "clip_score": _write_clip_score,
    "image_reward": _write_image_reward,
    "aesthetic": _write_aesthetic,
}
