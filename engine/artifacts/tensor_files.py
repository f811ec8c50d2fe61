"""Safetensors files with their headers, written so that a full disk looks like one."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_CHUNK_BYTES = 2**20
_HEADER_LENGTH_BYTES = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and header texts to one safetensors file.

    Raises OSError with errno ENOSPC or EDQUOT if the disk is full: safetensors itself says so only in a text.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata=dict(metadata))
    except SafetensorError as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if f"os error {number}" in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def tensor_sha256(path: Path) -> str:
    """SHA-256, in hex, of what follows a safetensors file's header: the tensors alone, whatever the header says."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        header_length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        stream.seek(header_length, os.SEEK_CUR)
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
