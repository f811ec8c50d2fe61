"""What a diffusers pipeline folder holds: of which family, and whether it is whole (free of torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.catalogue import MODEL_INFO
from engine.settings import ModelName
from engine.tensor_headers import HeaderError, TensorShape, read_header

INDEX_NAME = "model_index.json"
CARD_NAME = "README.md"
_MAX_JSON_BYTES = 64 * 2**20
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_NEEDED = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")


class PipelineFolderError(ValueError):
    """A folder that is not the pipeline it should be, in a sentence."""


def check_pipeline_folder(folder: Path, name: ModelName) -> None:
    """Raise PipelineFolderError, with a sentence, unless the folder holds a whole pipeline of that family."""
    check_class(read_index(folder), name, str(folder))
    check_whole(folder)
    _check_parts(folder)


def check_class(index: dict[str, Any], name: ModelName, place: str) -> None:
    """Raise PipelineFolderError if an index is of another family's pipeline; `place` is where it was found."""
    found, expected = index.get("_class_name"), MODEL_INFO[name].pipelines
    if found not in expected:
        others = families_of(index)
        remedy = f"set model.name to {others[-1]}" if others else "choose another"
        raise PipelineFolderError(
            f"{place} holds a {found}, but {name} needs a {' or '.join(expected)}; {remedy}."
        )


def families_of(index: dict[str, Any]) -> tuple[ModelName, ...]:
    """The families that an index's pipeline may be of."""
    return tuple(name for name, info in MODEL_INFO.items() if index.get("_class_name") in info.pipelines)


def check_whole(folder: Path) -> None:
    """Raise PipelineFolderError if a pipeline folder lacks anything."""
    missing = missing_files(folder)
    if not missing:
        return
    more = f", and {len(missing) - 1} more" if missing[1:] else ""
    part = folder / missing[0].partition("/")[0]
    if any(path.suffix in _PICKLES for path in part.glob("*")):
        raise PipelineFolderError(
            f"{folder} holds pickles ({part.name}/) where safetensors should be, and pickles are never read: get its "
            "safetensors, or convert it with diffusers (from_pretrained, then save_pretrained)."
        )
    raise PipelineFolderError(
        f"{folder} is not whole: {missing[0]} is missing{more}; download or copy it again."
    )


def _check_parts(folder: Path) -> None:
    """Raise ValueError, with a sentence, if a whole pipeline folder lacks a part it needs, or a file is cut.

    Stable Diffusion 3 may go without T5; all else that encodes prompts or draws is needed.
    """
    index = read_index(folder)
    parts = part_names(index)
    without = {"text_encoder_3", "tokenizer_3"} if "text_encoder_3" not in parts else set()
    for name, entry in index.items():
        if isinstance(entry, list) and name not in parts and name.startswith(_NEEDED) and name not in without:
            raise PipelineFolderError(
                f"{folder} has no {name} ({INDEX_NAME} says null), and prompts cannot be drawn without; choose a whole "
                "pipeline."
            )
    for name in parts:
        for config in (folder / name).glob("*config.json"):
            read_json(config)
        tensor_shapes(weight_files(folder / name))


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline folder's model_index.json. Raises PipelineFolderError if it has none that can be read."""
    path = folder / INDEX_NAME
    if not path.is_file():
        raise PipelineFolderError(
            f"{folder} is not a diffusers pipeline folder (it has no {INDEX_NAME}); check model.folder."
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file of a pipeline. Raises PipelineFolderError if it holds none, or is far too large."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise PipelineFolderError(f"{path} is too large for what it should be; download it again.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineFolderError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, PipelineFolderError):
            raise
        raise PipelineFolderError(f"{path} is not valid JSON; download or copy it again.") from error
    if not isinstance(data, dict):
        raise PipelineFolderError(f"{path} is not what diffusers writes there; download or copy it again.")
    return data


def part_names(index: dict[str, Any]) -> list[str]:
    """Names of the folders that an index says there are, such as transformer and vae."""
    return [
        name for name, entry in index.items()
        if re.fullmatch(r"[a-z][a-z0-9_]*", name) and isinstance(entry, list) and entry and entry[0]
    ]  # fmt: skip


def missing_files(folder: Path) -> list[str]:
    """What a pipeline folder lacks, relative to it: a part's folder, its weights, or one of their shards."""
    missing: list[str] = []
    for part in part_names(read_index(folder)):
        if not any((folder / part).glob("*.json")):
            missing.append(f"{part}/")
        elif _holds_weights(folder / part) and not weight_files(folder / part):
            missing.append(f"{part}/*.safetensors")
        else:
            missing += [f"{part}/{file.name}" for file in weight_files(folder / part) if not file.is_file()]
    return missing


def _holds_weights(part: Path) -> bool:
    """Whether a part is a network: schedulers, tokenizers and processors have another file for their settings."""
    return (part / "config.json").is_file() and not part.name.startswith(("tokenizer", "scheduler", "feature"))


def weight_files(part: Path) -> list[Path]:
    """A network's safetensors files, shards as their index names them, there or not; no variants such as fp16."""
    indices = [path for path in sorted(part.glob("*.safetensors.index.json")) if not _is_variant(path)]
    if indices:
        shards = read_json(indices[0]).get("weight_map")
        if not isinstance(shards, dict):
            raise PipelineFolderError(f"{indices[0]} names no files; download or copy it again.")
        names = {str(name) for name in shards.values()}
        if any(Path(name).name != name for name in names):
            raise PipelineFolderError(f"{indices[0]} names files outside its folder, so it is not read.")
        return [part / name for name in sorted(names)]
    return [path for path in sorted(part.glob("*.safetensors")) if not _is_variant(path)]


def _is_variant(path: Path) -> bool:
    """Whether a file holds weights of a variant, which its name tells before the ending: model.fp16.safetensors."""
    return "." in path.name.partition(".safetensors")[0]


def pixels_a_latent(vae: Mapping[str, Any]) -> int:
    """Pixels a side that a latent covers, by an autoencoder's config: a halving for all but one of its levels."""
    lists = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
    widths = next((vae[key] for key in lists if key in vae), [0] * 4)
    return int(vae.get("spatial_compression_ratio") or 2 ** (len(widths) - 1))


def tensor_shapes(files: Sequence[Path]) -> dict[str, TensorShape]:
    """All tensors of some safetensors files, from their headers. Raises HeaderError where one is none."""
    found: dict[str, TensorShape] = {}
    for file in files:
        if not file.is_file():
            raise HeaderError(f"{file} is not there; download or copy the model again.")
        found |= read_header(file).tensors
    return found
