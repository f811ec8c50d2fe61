"""A CPU memory with a limit of its own: every tensor made inside it counts; one too many is refused, as on a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LimitedMemory(TorchDispatchMode):
    """Counts the bytes of all storages made while it is entered and still held; fits `DeviceMemory`.

    `refusals` counts the times that memory ran out; `of_iteration` is a test's own.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.held = self.most = self.refusals = self.of_iteration = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def free(self) -> int:
        """Bytes that can still be allocated."""
        return int(self.limit) - self.held

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes held at once by `work`, beyond those held before it."""
        before = self.most = self.held
        work()
        return self.most - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if id(storage) not in inputs:
                self._count(storage)
        if self.held > self.limit:
            self.refusals += 1
            raise torch.OutOfMemoryError("This memory is full.")
        self.most = max(self.most, self.held)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def let_go(_: object) -> None:
            del self._known[key]
            self.held -= size

        self._known[key] = weakref.ref(storage, let_go)
        self.held += size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def held_after(memory: LimitedMemory) -> int:
    """Bytes still held, cycles let go."""
    gc.collect()
    return memory.held
