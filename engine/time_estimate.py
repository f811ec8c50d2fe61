"""How long a run will take, before it starts: its counted work, a forward's operations and a speed (free of torch).

The work is what the engine counts (engine/work.py), the operations are those of the model's own weights
(engine/flops.py), and the speed is that of earlier runs, of a GPU's data sheet, or of a moment's try on this CPU.
Rewards take what the catalogue says. Decoding is counted where earlier runs have measured it, and loading and encoding
never.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from engine.catalogue import REWARD_INFO
from engine.catalogue.gpus import GpuInfo
from engine.durations import duration
from engine.flops import count_flops
from engine.model_size import ModelSize
from engine.settings import RewardName, RunSettings
from engine.work import mean_work, num_evaluations, num_passes

# Of a GPU's peak, in drawing and, with the forwards that are done again, in training: FLUX.1 on an H200
# (benchmarks/flux_step.py). Assumed of other GPUs and families.
UTILISATION = 0.34
# Of what a matrix product in float32 reaches on a CPU, by the built-in model in drawing and training, as measured: in
# float32 and, where the CPU computes in it, in bfloat16.
_SHARES_ON_CPU = {"float32": 0.55, "bfloat16": 0.9}
_TRIED_SIDE, _TRIES = 384, 8
# Weights of a model whose products are so short that a GPU waits for them to be asked for.
_SMALL = 1e8
TOO_SMALL = "How long it takes on a GPU is not known of a model this small; the first iteration will tell."


@dataclass(frozen=True)
class Speed:
    """How fast a device is.

    Attributes:
        flops: operations of the transformer a second.
        source: where that is known from, in words that follow "About 8 s an iteration".
        on_gpu: rewards that are models score on a GPU.
        decoding: seconds to decode an image; 0 where that is not known.
    """

    flops: float
    source: str
    on_gpu: bool = False
    decoding: float = 0.0


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds: of an iteration's parts, and of all evaluations of the run."""

    drawing: float
    training: float
    scoring: float
    evaluations: float
    iterations: int

    @property
    def iteration(self) -> float:
        """Of one iteration."""
        return self.drawing + self.training + self.scoring

    @property
    def run(self) -> float:
        """Of the whole run."""
        return self.iterations * self.iteration + self.evaluations


def estimate_time(size: ModelSize, settings: RunSettings, speed: Speed) -> TimeEstimate:
    """What a run with these settings takes at that speed, its images shared by its processes."""
    flops, work = count_flops(size, settings), mean_work(settings, size.takes_guidance)
    trained = work.reference * flops.forward + work.trained_forwards * flops.trained(settings)
    grpo, evaluation = settings.grpo, settings.evaluation
    images = grpo.prompts_per_iteration * grpo.group_size
    # Of several processes each takes whole prompts; the others wait for the one that has most.
    share = math.ceil(grpo.prompts_per_iteration / settings.compute.num_processes) / grpo.prompts_per_iteration
    scoring = sum(milliseconds(reward.name, speed.on_gpu) for reward in settings.rewards) / 1000
    held_out = evaluation.num_steps * num_passes(settings, evaluation.guidance_scale, size.takes_guidance)
    return TimeEstimate(
        drawing=share * (work.rollout * flops.forward / speed.flops + images * speed.decoding),
        training=share * trained / speed.flops,
        scoring=share * images * scoring,
        evaluations=num_evaluations(settings) * evaluation.num_prompts
        * (held_out * flops.forward / speed.flops + speed.decoding + scoring),
        iterations=settings.iterations,
    )  # fmt: skip


def milliseconds(reward: RewardName, on_gpu: bool) -> float:
    """What the catalogue says that scoring an image takes."""
    info = REWARD_INFO[reward]
    if on_gpu and info.milliseconds_on_gpu is not None:
        return info.milliseconds_on_gpu
    return info.milliseconds_an_image


def is_too_small(size: ModelSize) -> bool:
    """Whether a GPU's data sheet says nothing about the model."""
    return size.num_weights < _SMALL


def gpu_speed(gpu: GpuInfo, settings: RunSettings) -> Speed:
    """What a GPU reaches of its data sheet, in the run's precision."""
    half = settings.model.precision == "bfloat16"
    peak = gpu.bfloat16 if half else gpu.float32
    share, precision = f"{100 * UTILISATION:.0f} %", settings.model.precision
    source = f"on an NVIDIA {gpu.name}, if it reaches {share} of its {peak:g} TFLOP/s in {precision}"
    return Speed(UTILISATION * peak * 1e12, source, on_gpu=True)


def cpu_speed(settings: RunSettings) -> Speed:
    """What a process of the run reaches on this machine's CPU, by how long a matrix product takes it."""
    compute, precision = settings.compute, settings.model.precision
    share = _SHARES_ON_CPU[precision if _computes_in_bfloat16() else "float32"]
    cores = os.cpu_count() or 1
    used = min(compute.num_threads or cores / compute.num_processes, cores) / cores
    return Speed(share * used * _flops_of_a_product(), "on this machine's CPU, going by a moment's arithmetic")


@cache
def _flops_of_a_product() -> float:
    """Operations a second of a matrix product in float32 on all cores; tried once a process, in milliseconds."""
    matrix = np.ones((_TRIED_SIDE, _TRIED_SIDE), np.float32)
    seconds = math.inf
    for _ in range(_TRIES):
        begun = time.perf_counter()
        matrix @ matrix
        seconds = min(seconds, time.perf_counter() - begun)
    return 2 * _TRIED_SIDE**3 / seconds


@cache
def _computes_in_bfloat16() -> bool:
    """Whether this machine's CPU says that it does (Linux on x86: avx512_bf16, amx_bf16; on ARM: bf16)."""
    path = Path("/proc/cpuinfo")
    return path.exists() and "bf16" in path.read_text(encoding="utf-8", errors="replace")


def in_words(estimate: TimeEstimate, speed: Speed) -> str:
    """The estimate in a sentence."""
    parts = {"drawing": estimate.drawing, "training": estimate.training, "scoring": estimate.scoring}
    told = ", ".join(f"{_seconds(seconds)} {what}" for what, seconds in parts.items())
    return (
        f"About {_seconds(estimate.iteration)} an iteration ({told}) and {duration(estimate.run)} in all, "
        f"{speed.source}" + ("." if speed.decoding else "; decoding the images comes on top.")
    )


def _seconds(seconds: float) -> str:
    """A length of time with a digit after the point where it is short."""
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)
