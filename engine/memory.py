"""A device's memory: how much is free, what a piece of work takes of it, and how many images therefore fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from engine.batching import attempt

# What is left for fragments, and for what differs between a probe and a run.
_USABLE_SHARE = 0.85


class DeviceMemory(Protocol):
    """The memory of one device."""

    def free(self) -> int:
        """Bytes that can still be allocated."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes held at once by `work`, beyond those held before it."""
        ...


class CudaMemory:
    """A GPU's memory, as torch's allocator knows it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        """Bytes that can still be allocated: those the driver has, and those the allocator keeps unused."""
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + unused

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes held at once by `work`, beyond those held before it."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def device_memory(device: torch.device) -> DeviceMemory | None:
    """The memory to probe; None on a CPU, where the operating system would rather end a process than refuse it."""
    return CudaMemory(device) if device.type == "cuda" else None


def largest_batch(memory: DeviceMemory, most: int, work: Callable[[int], object], reserved: int = 0) -> int:
    """The largest of 1, 2, 4, …, `most` images whose work keeps to a share of what is free; 0 if memory runs out at 1.

    `work(n)` does with n images what a run does; `reserved` bytes are for what the run will hold besides.
    """
    usable = _USABLE_SHARE * (memory.free() - reserved)
    fits, size = 0, 1
    while True:
        held = attempt(partial(memory.peak, partial(work, size)))
        if held is None or (held[0] > usable and size > 1):
            return fits
        fits = size
        if size == most or held[0] > usable:
            return fits
        size = min(2 * size, most)
