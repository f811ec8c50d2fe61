"""A frozen linear layer whose weight is held in 8 bits: whole numbers within ±127, and a scale a row (2208.07339).

Deviation from the paper: inputs are not rounded (weight-only), so that nothing depends on what else is in a batch.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.models.autocasting import as_autocast

_LARGEST = 127


class Int8Linear(nn.Linear):
    """A linear layer with an int8 weight (out, in), and float32 scales (out, 1)."""

    scale: Tensor

    @classmethod
    def of(cls, layer: nn.Linear, device: torch.device) -> Self:
        """The layer, rounded, on the device; in evaluation mode as frozen layers are."""
        new = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight.detach().to(device).float()
        scale = (weight.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        new.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        new.register_buffer("scale", scale)
        new.bias = layer.bias if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), False)
        return new.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return _Int8Product.apply(as_autocast(x), self.weight, self.scale, self.bias)


class _Int8Product(torch.autograd.Function):
    """x·Wᵀ + b, with the weight made whole again for each pass and let go after it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return functional.linear(x, _whole(weight, scale, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        return gradient @ _whole(weight, scale, gradient.dtype), None, None, None


def _whole(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)
