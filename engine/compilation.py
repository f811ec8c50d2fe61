"""torch.compile of a run's transformer: the same compiled blocks draw the images and are trained.

A block is compiled, not the whole: blocks alike share what was compiled for the first of them, and what lies around
them (masks of unequal prompts, gradient checkpointing) stays as it is. Nothing is wrapped, so weights keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

# Variants of one block: with and without gradient, its first and last place, with and without the adapter, one image
# or several. torch's own limit of 8 would leave a variant uncompiled, without a word.
_MOST_VARIANTS = 64
BACKEND: str | Callable[..., Any] = "inductor"


class CompilationError(ValueError):
    """The transformer cannot be compiled here; says what to change."""


def compile_blocks(transformer: nn.Module) -> None:
    """Compile every block of the transformer's stacks, at its first call, for batches of any size.

    Raises CompilationError where it has none.
    """
    stacks = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    blocks = [block for stack in stacks for block in stack]
    if not blocks:
        raise CompilationError("This transformer has no stack of blocks to compile; set compute.compile to false.")
    for block in blocks:
        block.compile(backend=BACKEND, dynamic=True, recompile_limit=_MOST_VARIANTS)


@contextmanager
def compilation_told() -> Iterator[None]:
    """Inside, what the compiler cannot do is told in a sentence, as CompilationError, and never left uncompiled."""
    try:
        with torch.compiler.config.patch(fail_on_recompile_limit_hit=True):  # type: ignore[attr-defined]
            yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        cause = str(getattr(error, "inner_exception", error))
        first_line = next((line.strip() for line in cause.splitlines() if line.strip()), type(error).__name__)
        raise CompilationError(
            f"The transformer could not be compiled here ({first_line}). Set compute.compile to false; it "
            "needs a C++ compiler (g++) on a CPU, and triton on a GPU."
        ) from error
