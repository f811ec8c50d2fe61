"""The processes of one run, its ranks: which images each holds, and how what they find is put together.

Every rank holds whole groups, draws its rows of the one batch that a single process would draw, and hears every score,
so that all of them compute the same advantages and the same split into updates, and take the same optimiser steps. A
run therefore depends on its number of processes by rounding alone. For one process alone, all of this is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.settings import ComputeSettings
from engine.transfer import to_device

T = TypeVar("T")

# The main rank may draw or score for long while the others wait; a rank that dies is noticed by who started it.
_PATIENCE = timedelta(days=1)
_BUCKET_ELEMENTS = 2**25


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one rank holds: from `start` to before `stop`, of `total` on all ranks."""

    start: int
    stop: int
    total: int

    @classmethod
    def whole(cls, total: int) -> Share:
        """All rows: those of a process alone."""
        return cls(0, total, total)

    def times(self, count: int) -> Share:
        """The same share of a batch that has `count` rows for each of this one's."""
        return Share(self.start * count, self.stop * count, self.total * count)

    @property
    def rows(self) -> slice:
        """What to index the whole batch with."""
        return slice(self.start, self.stop)

    def own(self, places: Tensor) -> Tensor:
        """Those of some places (long) in the whole batch that are in this share, counted from its start."""
        return places[(places >= self.start) & (places < self.stop)] - self.start

    def normal(self, like: Tensor, generator: torch.Generator, dim: int = 0) -> Tensor:
        """Standard normal noise like a tensor of the share: its rows, along `dim`, of a draw for the whole batch.

        Drawn where the generator lives, so that a seed means the same noise on every device.
        """
        shape = list(like.shape)
        shape[dim] = self.total
        noise = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
        return to_device(noise.narrow(dim, self.start, self.stop - self.start), like.device)


@dataclass(frozen=True)
class Ranks:
    """A process among those of its run.

    Every rank must call each method that others are asked in, in the same order. One that raises ends its process, and
    whoever started the ranks then ends the others (engine/launch.py).

    Attributes:
        rank: 0 for the main one, which speaks, saves and evaluates.
        sharded: whether the ranks hold the weights in parts (engine/sharding.py) and so must run the model together.
    """

    rank: int = 0
    world_size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run's files and events."""
        return self.rank == 0

    def share(self, count: int) -> Share:
        """The rank's own share of `count` rows, as even as can be."""
        return Share(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size, count)

    def gather(self, value: T) -> list[T]:
        """Every rank's value (anything pickle can hold), by rank."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # each place has been filled

    def any(self, value: bool) -> bool:
        """Whether it holds on any rank."""
        return any(self.gather(value))

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on the main rank, the only one to call it."""
        if self.world_size == 1:
            return make()
        values = [make() if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]  # it has been filled

    def busiest(self, count: int) -> int:
        """How often the model must run where this rank needs `count` times: sharded, as often as any rank needs."""
        return max(self.gather(count)) if self.sharded else count

    @torch.no_grad()
    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient the sum of all ranks'. A parameter that has none on any rank keeps none."""
        if self.world_size == 1 or self.sharded:  # FSDP adds them up in the backward pass
            return
        parameters = list(parameters)
        num_present = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        dist.all_reduce(num_present)
        present = [p for p, number in zip(parameters, num_present.tolist(), strict=True) if number]
        for parameter in present:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in present if parameter.grad is not None]):
            _add_up(bucket)

    def leave(self) -> None:
        """Part from the others at the end of the run; not after an error, when leaving may wait for them."""
        if self.world_size > 1:
            dist.destroy_process_group()


ALONE = Ranks()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, as many at a time as are worth one message."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(part.numel() for part in bucket) >= _BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _add_up(tensors: list[Tensor]) -> None:
    """Make each tensor the sum of all ranks', in place."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def is_one_of_several() -> bool:
    """Whether this process was started as a rank, by engine/launch.py or by torchrun."""
    return dist.is_torchelastic_launched()


def uses_gpus(compute: ComputeSettings) -> bool:
    """Whether the ranks of a run with these settings have a GPU each."""
    return compute.device != "cpu" and torch.cuda.is_available()


def join_ranks(compute: ComputeSettings) -> Ranks:
    """The ranks that this process was started as one of, on CUDA each with a GPU of its own; else it alone."""
    if not is_one_of_several():
        return ALONE
    if cuda := uses_gpus(compute):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    world_size = dist.get_world_size()
    return Ranks(dist.get_rank(), world_size, sharded=compute.sharding == "fsdp" and world_size > 1)
