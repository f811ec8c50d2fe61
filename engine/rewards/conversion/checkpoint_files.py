"""Reading published checkpoints: weights alone, never code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = Mapping[str, Tensor]

_WRAPPERS = ("state_dict", "model", "module")
_PREFIX = "module."


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why and what to do."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt`, `.pth`, `.bin` or `.safetensors` file. Raises ConversionError for anything else."""
    if not path.is_file():
        raise ConversionError(f"{path} is not a file; give the checkpoint that was downloaded.")
    try:
        data = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} holds more than weights, or is no PyTorch file; it is not read, since such a file can run code. "
            "Fetch the original again, from where its authors publish it."
        ) from error
    except Exception as error:  # a damaged file surfaces as nearly any error of the unpickler
        raise ConversionError(
            f"{path} is damaged or not a whole checkpoint; fetch it again and compare its size with the published one."
        ) from error
    return _tensors(path, data)


def _load(path: Path) -> Any:
    """What torch reads without running anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that it then refuses
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(path: Path, data: Any) -> dict[str, Tensor]:
    """The tensors by name, out of the wrapping that training code puts around them."""
    for wrapper in _WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
    tensors = {
        str(key).removeprefix(_PREFIX): value
        for key, value in (data.items() if isinstance(data, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ConversionError(f"{path} holds no named weights, so it is no checkpoint of a reward.")
    unfit = [key for key, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if unfit:
        raise ConversionError(f"{path} is damaged: {unfit[0]} holds values that are no numbers. Fetch it again.")
    return tensors


def check_names(found: Tensors, wanted: Mapping[str, tuple[int, ...]], path: Path, what: str) -> None:
    """Raise ConversionError unless the tensors are exactly those of a model (shapes by name)."""
    absent = [key for key in wanted if key not in found]
    if absent:
        raise ConversionError(
            f"{path} is not a whole {what}: {len(absent)} tensors are absent, such as {absent[0]}. Fetch it again."
        )
    strange = [key for key in found if key not in wanted]
    if strange:
        raise ConversionError(
            f"{path} is not a {what} that Palate knows: it has {len(strange)} tensors more, such as {strange[0]}."
        )
    for key, shape in wanted.items():
        if tuple(found[key].shape) != tuple(shape):
            raise ConversionError(
                f"{path} is not a {what} that Palate knows: {key} has the shape {tuple(found[key].shape)}, "
                f"where {tuple(shape)} would fit the others."
            )
