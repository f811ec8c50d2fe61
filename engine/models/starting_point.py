"""What a base model starts from instead of its own transformer: a LoRA merged into it, or other weights for all of it.

Files are read as safetensors whatever their names; original single files (as their authors published them) are turned
into diffusers' names by diffusers, with the pipeline folder's own configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders import FromOriginalModelMixin
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.models.lora_files import merge_lora, read_lora
from engine.pipeline_folders import read_index, tensor_shapes
from engine.starting_files import PART, StartingPointError, check_shapes, is_lora, transformer_files
from engine.tensor_headers import Header, read_header

# Diffusers' conversions of these families' single files have the published width written into them.
SINGLE_FILE_WIDTHS = {
    "FluxTransformer2DModel": 3072, "ChromaTransformer2DModel": 3072, "Lumina2Transformer2DModel": 2304,
}  # fmt: skip


def start_from(path: Path, transformer: Any, folder: Path) -> None:
    """Give a pipeline's transformer the weights of a LoRA file, a transformer file or a transformer folder.

    `folder` is the pipeline's. Raises ValueError with a sentence if it is none of them, or another model's.
    """
    if path.is_dir():
        _start_from_folder(path, transformer)
        return
    if not path.is_file():
        raise StartingPointError(f"{path} is not there; check model.start_from.")
    header = read_header(path)
    if is_lora(header):
        pipeline = getattr(diffusers, read_index(folder)["_class_name"])
        merge_lora(path, read_lora(path, header, transformer, pipeline), transformer)
    elif header.tensors.keys() == transformer.state_dict().keys():
        check_shapes(path, header, _shapes_of(transformer))
        _copy_into(transformer, _tensors_of([path]))
    else:
        _start_from_original(path, transformer, folder)


def _start_from_folder(path: Path, transformer: nn.Module) -> None:
    """Copy the weights of a diffusers transformer folder, or of the transformer of a pipeline folder."""
    files = transformer_files(path)
    check_shapes(path, Header(tensor_shapes(files), {}), _shapes_of(transformer))
    _copy_into(transformer, _tensors_of(files))


def _start_from_original(path: Path, transformer: Any, folder: Path) -> None:
    """Copy the weights of a single file with its authors' own names."""
    kind = type(transformer)
    if not issubclass(kind, FromOriginalModelMixin):
        raise StartingPointError(
            f"{path} names its tensors in another way than diffusers does, and diffusers reads no single files of this "
            "family; use a transformer folder in diffusers' layout."
        )
    published = SINGLE_FILE_WIDTHS.get(kind.__name__)
    width = transformer.x_embedder.out_features if published is not None else None
    if published != width:
        raise StartingPointError(
            f"{path} is no LoRA, and diffusers reads single files of this family at their published width alone "
            f"({published}; the base's is {width}); use a transformer folder in its layout."
        )
    try:
        read = kind.from_single_file(
            load_file(path), config=str(folder), subfolder=PART, dtype=transformer.dtype, local_files_only=True
        )
    except Exception as error:  # a foreign parser on a foreign file: whatever it raises, the file is what is wrong
        logging.getLogger(__name__).debug("from_single_file", exc_info=True)
        raise StartingPointError(
            f"{path} is no LoRA and no transformer of this model: diffusers cannot read it ({type(error).__name__})."
        ) from error
    state = read.state_dict()
    strange = [name for name, tensor in state.items() if tensor.device.type == "meta"]
    if strange:
        raise StartingPointError(f"{path} is not whole: it lacks {len(strange)} tensors, such as {strange[0]}.")
    _copy_into(transformer, state.items())


def _shapes_of(transformer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}


def _tensors_of(files: Iterable[Path]) -> Iterable[tuple[str, Tensor]]:
    """The tensors of some files, one at a time."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                yield name, file.get_tensor(name)


@torch.no_grad()
def _copy_into(transformer: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Set weights in place, in the types they have."""
    own = transformer.state_dict()
    for name, tensor in tensors:
        own[name].copy_(tensor)
