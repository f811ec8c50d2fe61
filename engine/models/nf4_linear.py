"""A frozen linear layer whose weight is held in 4 bits: 16 levels, and a scale for every 64 numbers (2305.14314).

Its arithmetic is bitsandbytes'. The scales are not quantised again, as the paper does to save 0.4 bits a weight.
"""

from __future__ import annotations

from typing import Self

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from engine.models.autocasting import as_autocast


class Nf4Linear(Linear4bit):
    """A linear layer with a packed weight; needs the extra quantisation."""

    @classmethod
    def of(cls, layer: nn.Linear, device: torch.device) -> Self:
        """The layer, rounded, on the device; in evaluation mode as frozen layers are."""
        new = cls(layer.in_features, layer.out_features, bias=False, quant_type="nf4", device="meta")
        new.weight = Params4bit(
            layer.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=False, module=new
        ).to(device)
        new.bias = layer.bias if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), False)
        # On some CPUs it would pack its weight anew for inference, in a form that has no gradient.
        new.support_avx512bf16_for_cpu = False
        return new.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        x = as_autocast(x)
        self.compute_dtype = x.dtype
        return super().forward(x)
