"""From the host to the device without a wait: a plain copy lets the host stand until the GPU has done all before it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The host's tensor on the device, where what is asked of it next finds it; the host goes on at once."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
