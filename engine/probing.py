"""How many images at a time fit the GPU's memory, found by trying, for `compute.micro_batch: auto`.

A probe does what the run will do, on noise and its longest prompt, with 1, 2, 4, … images. Rewards are not probed: they
batch for themselves. Ranks that must run the model together are not either: one that ran out would leave the others
waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from engine.batching import BatchSize
from engine.events import Message
from engine.memory import device_memory, largest_batch
from engine.memory_estimate import moments_bytes
from engine.models import PromptEmbeddings
from engine.models.velocity import prompt_velocity
from engine.run import Run

_GIB = 2**30


def size_batches(run: Run) -> None:
    """Size the run's micro-batches to its device's memory where the settings ask for that, and tell them.

    Raises DeviceFullError, saying what to change, where not even one image fits.
    """
    memory = device_memory(run.device)
    if run.settings.compute.micro_batch != "auto" or run.ranks.sharded or memory is None:
        return
    free = memory.free()
    longest = run.encode([max((*run.prompts.training, *run.prompts.held_out), key=len)])
    groups = run.ranks.share(run.settings.grpo.prompts_per_iteration)
    drawn = (groups.stop - groups.start) * run.settings.grpo.group_size
    most = max(drawn, -(-len(run.prompts.held_out) // run.ranks.world_size))
    _set(run.sizes.sample, largest_batch(memory, most, _drawing(run, longest)))
    _set(run.sizes.decode, largest_batch(memory, most, lambda count: run.model.decode(_latents(run, count))))
    _set(run.sizes.train, largest_batch(memory, drawn, _training(run, longest), _reserved(run)))
    run.counter.take()
    text = (
        f"Sized to {free / _GIB:.1f} GiB of free memory: {run.sizes.sample.limit} images at a time while drawing, "
        f"{run.sizes.decode.limit} while decoding, {run.sizes.train.limit} in training."
    )
    run.emit(Message(time=time.time(), text=text))


def _set(size: BatchSize, found: int) -> None:
    if found == 0:
        size.halve(1)
    size.limit = found


def _latents(run: Run, count: int) -> Tensor:
    """Noise (count, C, h, w), the same for every image."""
    one = run.model.noise(torch.Generator().manual_seed(0), 1)
    return one.repeat(count, *[1] * (one.dim() - 1))


def _drawing(run: Run, prompt: PromptEmbeddings) -> Callable[[int], object]:
    """A velocity as rollout or evaluation asks for it, the costlier of both."""
    settings = run.settings
    scale = max(settings.sampling.guidance_scale, settings.evaluation.guidance_scale)
    velocity = prompt_velocity(run.model, prompt, scale, settings.model.precision)

    @torch.no_grad()
    def draw(count: int) -> object:
        latents = _latents(run, count)
        return velocity(latents, 1.0, torch.zeros(count, dtype=torch.long))

    return draw


def _training(run: Run, prompt: PromptEmbeddings) -> Callable[[int], object]:
    """Forward and backward; the gradients are let go again."""
    settings = run.settings
    scale = 1.0 if settings.method == "nft" else settings.sampling.guidance_scale
    velocity = prompt_velocity(run.model, prompt, scale, settings.model.precision)

    def train(count: int) -> None:
        latents = _latents(run, count)
        try:
            velocity(latents, 1.0, torch.zeros(count, dtype=torch.long)).square().mean().backward()
        finally:
            run.optimiser.zero_grad(set_to_none=True)

    return train


def _reserved(run: Run) -> int:
    """Bytes that AdamW will hold from its first step on: two moments of every weight that has none yet."""
    new = [parameter for parameter in run.trainable.parameters.values() if parameter not in run.optimiser.state]
    return moments_bytes([parameter.numel() for parameter in new], run.settings.optimiser.name)
