"""What a safetensors file holds, from its header alone, under limits and free of torch.

A file is what its bytes say, whatever its name: eight bytes of length, then that many bytes of JSON, then the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LENGTH_BYTES = 8
# The largest published headers are a few megabytes: a transformer of a thousand LoRA pairs takes less than one.
MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 8
_METADATA = "__metadata__"

BYTES_OF_TYPE: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


class HeaderError(ValueError):
    """A file that is no whole safetensors file, in a sentence."""


@dataclass(frozen=True)
class TensorShape:
    """One tensor: its type by safetensors' name, and its shape."""

    type: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Elements in all."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.num_elements * BYTES_OF_TYPE[self.type]


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, and the texts it carries."""

    tensors: Mapping[str, TensorShape]
    texts: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Raises HeaderError if it is none, or not whole."""
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
                raise _no_safetensors(path)
            text = stream.read(length)
    except OSError as error:
        raise HeaderError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path) from error
    if not isinstance(data, dict) or len(data) > MAX_TENSORS:
        raise _no_safetensors(path)
    texts = data.pop(_METADATA, None) or {}
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise _no_safetensors(path)
    room = num_bytes - _LENGTH_BYTES - length
    return Header({name: _tensor(path, entry, room) for name, entry in data.items()}, texts)


def _tensor(path: Path, entry: Any, room: int) -> TensorShape:
    """A tensor's entry, checked against the bytes there are."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [begin, end, *shape]
        counted = all(type(number) is int and number >= 0 for number in numbers)
        if not counted or len(shape) > _MAX_DIMENSIONS or kind not in BYTES_OF_TYPE:
            raise _no_safetensors(path)
    except (TypeError, KeyError, ValueError) as error:
        raise _no_safetensors(path) from error
    tensor = TensorShape(kind, tuple(shape))
    if end > room or tensor.num_bytes != end - begin:
        raise HeaderError(f"{path} is not whole: it ends before its tensors do; download or copy it again.")
    return tensor


def _no_safetensors(path: Path) -> HeaderError:
    return HeaderError(f"{path} is no safetensors file; only those are read, never pickles such as .ckpt, .pt or .bin.")
