"""What torch.autocast does for a linear layer, for layers whose arithmetic it does not know."""

from __future__ import annotations

import torch
from torch import Tensor


def as_autocast(x: Tensor) -> Tensor:
    """The input of a matrix product, in the precision that autocast would give it here."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
