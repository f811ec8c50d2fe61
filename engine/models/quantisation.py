"""A frozen transformer in fewer bits, for a LoRA: `model.quantisation`.

The linear layers of the blocks are held in 8 or 4 bits; embeddings, norms and the output keep the model's precision.
Weights alone are rounded, never what flows through them: the layers compute in the precision of the arithmetic, so the
training path computes what the rollout did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from engine.extras import missing_extra

Quantisation = Literal["none", "int8", "nf4"]
Make = Callable[[nn.Linear, torch.device], nn.Linear]


def quantise(transformer: nn.Module, quantisation: Quantisation, device: torch.device) -> None:
    """Put layers with fewer bits in place of the blocks' linear layers, one at a time, each on the device at once.

    What has been replaced already stays. Raises ValueError, saying what to install, if a package is missing.
    """
    if quantisation == "none":
        return
    make = _maker(quantisation)
    stacks = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    for module in [module for stack in stacks for block in stack for module in block.modules()]:
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, make(child, device))


def _maker(quantisation: Quantisation) -> Make:
    if quantisation == "int8":
        from engine.models.int8_linear import Int8Linear  # noqa: PLC0415 - beside its sibling

        return Int8Linear.of
    try:
        from engine.models.nf4_linear import Nf4Linear  # noqa: PLC0415 - an extra, for this alone
    except ImportError as error:
        raise missing_extra('model.quantisation "nf4"', "quantisation", error) from error
    return Nf4Linear.of
