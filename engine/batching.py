"""How many images are worked on at a time in each phase, and what happens where the device's memory runs out.

A part that did not fit is done again in halves. What comes out is the same up to rounding: every random draw is made
for the whole batch, never for a part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.models.base import TextToImage
from engine.settings import ComputeSettings
from engine.settings.compute import CPU_MICRO_BATCH

T = TypeVar("T")
Phase = Literal["sample", "decode", "score", "train"]
Tell = Callable[[str], None]

_DOING: dict[Phase, str] = {"sample": "drawing", "decode": "decoding", "score": "scoring", "train": "training"}
_REMEDIES: dict[Phase, str] = {
    "sample": "Set model.precision to bfloat16 and compute.offload to true, train a LoRA with model.quantisation int8, "
    "lower model.resolution, or use a GPU with more memory.",
    "decode": "Set model.vae_tile to 512 and compute.offload to true, lower model.resolution, or use a GPU with more "
    "memory.",
    "score": "Lower model.resolution, leave out the largest reward, or use a GPU with more memory.",
    "train": "Set tuning.gradient_checkpointing and compute.offload to true, train a LoRA (tuning.method) instead of "
    "all weights, set model.quantisation to int8, lower model.resolution, or use a GPU with more memory.",
}


_CPU_DECODE_SIZE = 24
# On a GPU where nothing is probed: small enough for large models.
_GPU_SIZE = 4


class DeviceFullError(ValueError):
    """Not even one image fits the device's memory; says what to change."""


def attempt(work: Callable[[], T]) -> tuple[T] | None:
    """What `work` gives, in a tuple; None where the device's memory ran out, with all that it held let go."""
    try:
        return (work(),)
    except torch.OutOfMemoryError:
        pass
    # Not in the handler: until it has ended, the error holds the frames in which memory ran out, and their tensors.
    torch.cuda.empty_cache()
    return None


class BatchSize:
    """The most images at a time in one phase; halved where memory runs out.

    Args:
        phase: what is done with them.
        limit: the most at first.
        tell: is told when it is halved.
        recovers: False where ranks must run the model together, so that none may do a part again alone.
    """

    def __init__(self, phase: Phase, limit: int, tell: Tell = lambda _: None, *, recovers: bool = True) -> None:
        assert limit >= 1, "a batch has an image"
        self.phase: Phase = phase
        self.limit = limit
        self.recovers = recovers
        self._tell = tell

    @classmethod
    def of(cls, size: int | BatchSize, phase: Phase) -> BatchSize:
        """A number as a size of its own; a size as it is."""
        return size if isinstance(size, BatchSize) else cls(phase, size)

    def map(self, num_images: int, work: Callable[[slice], T]) -> list[T]:
        """`work` on rows 0 … num_images, in order, at most `limit` at a time.

        Raises DeviceFullError where one image alone does not fit.
        """
        results: list[T] = []
        done = 0
        while done < num_images:
            rows = slice(done, min(done + self.limit, num_images))
            result = attempt(partial(work, rows))
            if result is None:
                self.halve(rows.stop - rows.start)
            else:
                results.append(result[0])
                done = rows.stop
        return results

    def halve(self, tried: int) -> None:
        """Take half of the number that did not fit. Raises DeviceFullError if that was 1, or cannot be done again."""
        if tried == 1:
            raise DeviceFullError(
                f"One image alone does not fit the memory of the device while {_DOING[self.phase]}. "
                f"{_REMEDIES[self.phase]}"
            )
        if not self.recovers:
            raise DeviceFullError(
                f"{tried} images at a time do not fit the memory of the device while {_DOING[self.phase]}, and with "
                f"compute.sharding the processes cannot try again with fewer; set compute.micro_batch to {tried // 2}."
            )
        self.limit = tried // 2
        self._tell(
            f"{tried} images at a time did not fit the memory of the device while {_DOING[self.phase]}; going on with "
            f"{self.limit}."
        )


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of a run, by phase."""

    sample: BatchSize
    decode: BatchSize
    score: BatchSize
    train: BatchSize


def fixed_size(compute: ComputeSettings, device: torch.device) -> int:
    """The images in one forward pass that the settings name; for "auto" what is safe without a probe."""
    if compute.micro_batch == "auto":
        return CPU_MICRO_BATCH if device.type == "cpu" else _GPU_SIZE
    return compute.micro_batch


def fixed_sizes(size: int, device: torch.device, tell: Tell = lambda _: None, *, recovers: bool = True) -> BatchSizes:
    """The same number of images in one forward pass, whatever the phase.

    Rewards batch for themselves, and some are asked over a network: they are given all images at once.
    """
    return BatchSizes(
        sample=BatchSize("sample", size, tell, recovers=recovers),
        decode=BatchSize("decode", min(size, _CPU_DECODE_SIZE) if device.type == "cpu" else size, tell),
        score=BatchSize("score", sys.maxsize, tell),
        train=BatchSize("train", size, tell, recovers=recovers),
    )


def decode(model: TextToImage, latents: Tensor, size: int | BatchSize) -> np.ndarray:
    """uint8 images (N, H, W, 3) of final latents (N, C, h, w), so many at a time."""
    size = BatchSize.of(size, "decode")
    return np.concatenate(size.map(len(latents), lambda rows: model.decode(latents[rows])))
