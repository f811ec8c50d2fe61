"""Gradient checkpointing of transformers that diffusers 0.42 runs otherwise when checkpointed than when not.

The training path must compute what the rollout did. What a block is called with is mended on its way to the checkpoint,
which keeps it for the second forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

Mend = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]
"""(block, its inputs) → the inputs it should have had"""


@contextmanager
def mended_checkpoints(transformer: Any, mend: Mend = lambda block, inputs: inputs) -> Iterator[None]:
    """Inside, a checkpointed block gets the inputs that `mend` gives, and may have inputs by name too."""
    if not transformer.gradient_checkpointing:
        yield
        return
    checkpoint = transformer._gradient_checkpointing_func

    def mended(block: nn.Module, *inputs: Any, **named: Any) -> Any:
        return checkpoint(partial(block, **named) if named else block, *mend(block, inputs))

    transformer._gradient_checkpointing_func = mended
    try:
        yield
    finally:
        transformer._gradient_checkpointing_func = checkpoint
