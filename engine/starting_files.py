"""What a file or folder to start from holds, by its headers alone: a LoRA, or a transformer (free of torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from engine.pipeline_folders import tensor_shapes, weight_files
from engine.tensor_headers import Header, read_header

PART = "transformer"
# A LoRA's first matrix, as peft and diffusers, and as kohya and older diffusers name it.
LORA_DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight")
_TEXT_ENCODERS = ("text_encoder", "lora_te", "te1.", "te2.")

StartKind = Literal["lora", "transformer", "file"]
"""A LoRA; a transformer folder, or a pipeline folder that holds one; another file: a transformer, by whatever names."""


class StartingPointError(ValueError):
    """A starting point that does not fit, in a sentence."""


class LoraError(StartingPointError):
    """A LoRA file that cannot be merged, in a sentence."""


def kind_of(path: Path) -> StartKind:
    """What a file or folder is, as far as its headers say. Raises ValueError if it is nothing to start from."""
    if path.is_dir():
        transformer_files(path)
        return "transformer"
    return "lora" if is_lora(read_header(path)) else "file"


def is_lora(header: Header) -> bool:
    """Whether a file's tensors are those of a LoRA."""
    return any(name.endswith(LORA_DOWN) for name in header.tensors)


def refuse_other_adapters(path: Path, header: Header) -> None:
    """Raise LoraError for adapters that are no plain LoRA of a transformer."""
    if any(name.startswith(_TEXT_ENCODERS) for name in header.tensors):
        raise LoraError(
            f"{path} adapts the text encoders too, which are not tuned here; save its transformer's part alone."
        )
    if any("dora_scale" in name for name in header.tensors):
        raise LoraError(f"{path} is a DoRA, which cannot be merged as a LoRA; merge it in the program that made it.")


def transformer_files(path: Path) -> list[Path]:
    """The weights of a diffusers transformer folder, or of the transformer of a pipeline folder.

    Raises StartingPointError if it holds none.
    """
    files = weight_files(path / PART if (path / PART).is_dir() else path)
    if not files:
        raise StartingPointError(
            f"{path} holds no transformer (a config.json and diffusion_pytorch_model.safetensors); check "
            "model.start_from."
        )
    return files


def check_shapes(path: Path, header: Header, own: Mapping[str, tuple[int, ...]]) -> None:
    """Raise StartingPointError unless a start's tensors are those of the base's transformer, in the same shapes."""
    different = sorted(own.keys() ^ header.tensors.keys())
    if different:
        raise StartingPointError(
            f"{path} is another model's transformer: {len(different)} names of tensors differ, such as {different[0]}."
        )
    for name, shape in own.items():
        if header.tensors[name].shape != shape:
            raise StartingPointError(
                f"{path} is another model's transformer: {name} is {header.tensors[name].shape} in it and {shape} in "
                "the base."
            )


def check_start(path: Path, folder: Path | None) -> None:
    """What headers tell of a start before it is loaded: raise ValueError if it cannot be one.

    `folder` is the pipeline it is for, None if that is not here. A file of its authors' own names, and the layers of a
    LoRA, are judged only once the model is loaded.
    """
    if path.is_dir():
        header = Header(tensor_shapes(transformer_files(path)), {})
    else:
        header = read_header(path)
        if is_lora(header):
            refuse_other_adapters(path, header)
            return
    if folder is None:
        return
    own = {name: tensor.shape for name, tensor in tensor_shapes(transformer_files(folder)).items()}
    if path.is_dir() or own.keys() == header.tensors.keys():
        check_shapes(path, header, own)
