"""torch's own code generator for a test: inductor, with a C++ compiler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch._inductor import config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler


def needs_code_generator(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Compile anew, into a folder, in this process; skip, or under CI fail, if there is no C++ compiler."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        if os.environ.get("CI"):
            pytest.fail("There is no C++ compiler, and under CI there must be (Debian: apt install g++).")
        pytest.skip("There is no C++ compiler (Debian: apt install g++).")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    monkeypatch.setattr(config, "compile_threads", 1)
    torch.compiler.reset()
