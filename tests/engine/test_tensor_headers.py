"""Headers of safetensors files: what torch's own reader says of good ones, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.tensor_headers import HeaderError, read_header


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_header_is_what_was_written(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4).bfloat16(), "c": torch.zeros((), dtype=torch.int8)}
    save_file(tensors, tmp_path / "any.name", metadata={"format": "pt"})
    header = read_header(tmp_path / "any.name")
    assert header.texts == {"format": "pt"}
    for name, tensor in tensors.items():
        found = header.tensors[name]
        assert (found.shape, found.num_bytes) == (tuple(tensor.shape), tensor.nbytes)


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[" * 100_000, [], {"a": 1}, {"a": {}}, {"__metadata__": {"x": 1}} | entry(),
        entry(dtype="PICKLE"), entry(shape=[-1]), entry(shape="1"), entry(shape=[1] * 9), entry(data_offsets=[0]),
        entry(shape=[True]), entry(shape=[1.0]),
    ],
)  # fmt: skip
def test_what_is_no_header(tmp_path: Path, header: object) -> None:
    with pytest.raises(HeaderError, match="no safetensors file"):
        read_header(write(tmp_path / "x.safetensors", header, b"1234"))


@pytest.mark.parametrize(
    "header", [entry(data_offsets=[0, 8]), entry(shape=[2]), entry(shape=[2**40, 2**40]), entry(data_offsets=[4, 8])]
)
def test_tensors_that_are_not_there(tmp_path: Path, header: object) -> None:
    with pytest.raises(HeaderError, match="is not whole"):
        read_header(write(tmp_path / "x.safetensors", header, b"1234"))


@pytest.mark.parametrize("data", [b"", b"abc", b"\x80\x02}q\x00.", (2**62).to_bytes(8, "little") + b"{}"])
def test_a_pickle_or_a_stub_under_a_good_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(HeaderError, match="no safetensors file; only those are read, never pickles"):
        read_header(path)
    with pytest.raises(HeaderError, match="cannot be read"):
        read_header(tmp_path / "gone")
