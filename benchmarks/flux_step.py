"""What an iteration costs at FLUX.1's true size: seconds, utilisation and memory, in rollout and in training.

`python benchmarks/flux_step.py [--presets mixgrpo mixgrpo_flash turbo] [--resolutions 1024 720]`
`python benchmarks/flux_step.py --size tiny` does the same in miniature, on a CPU too.

The engine's own rollout and update, LoRA, on a transformer of random weights that is made on the device in bfloat16.
There are no text encoders, autoencoder or costly rewards: embeddings are random, and what is scored are thumbnails of
the latents. A moving window is held at positions spread evenly over its range. Model FLOPs utilisation goes by
engine/flops.py and counts no forward that is repeated; without a peak for the device (engine/catalogue/gpus.py) there
is none.

Writes benchmarks/results/flux_step-<device>.json after each case (flux_step_tiny-<device>.json in miniature).
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from measuring import at_round, device_name
from torch import Tensor
from torch.nn import functional

from engine.catalogue.gpus import find_gpu
from engine.flops import Flops, count_flops
from engine.model_size import ModelSize
from engine.models import PromptEmbeddings
from engine.models.flux import Flux
from engine.presets import PRESETS
from engine.run import Run, find_device, prepare, sampling_policy
from engine.settings import RunSettings
from engine.tensor_headers import TensorShape
from engine.train import sample_and_score, update
from engine.versions import versions
from engine.work import work_at

RESULTS = Path(__file__).parent / "results"
RECIPES = tuple(name for name in PRESETS if not name.startswith("builtin"))
PIXELS_A_TOKEN = 16
THUMBNAIL = 8


@dataclass(frozen=True)
class Size:
    """A transformer to measure, and what suits it."""

    config: dict[str, Any]
    num_text_tokens: int
    resolutions: tuple[int, ...]
    micro_batch: int


SIZES = {
    "flux": Size(
        {
            "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
        },
        num_text_tokens=512, resolutions=(1024, 720), micro_batch=4,
    ),
    "tiny": Size(
        {
            "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16,
            "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
        },
        num_text_tokens=8, resolutions=(64,), micro_batch=12,
    ),
}  # fmt: skip


class BareFlux(Flux):
    """FLUX.1 of random weights, its encoders and autoencoder left out."""

    def __init__(self, size: Size, resolution: int, device: torch.device) -> None:
        parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        # dev's shift by resolution.
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        transformer = random_transformer(size.config, device)
        super().__init__(
            FluxPipeline(scheduler=scheduler, transformer=transformer, **dict.fromkeys(parts)), resolution
        )
        self.num_text_tokens = size.num_text_tokens

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Random embeddings, as large as T5's and CLIP's."""
        config, options = self.transformer.config, {"device": self.device, "dtype": torch.bfloat16}
        tokens = torch.randn(len(prompts), self.num_text_tokens, config.joint_attention_dim, **options)
        pooled = torch.randn(len(prompts), config.pooled_projection_dim, **options)
        return PromptEmbeddings({"tokens": tokens, "pooled": pooled})

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 thumbnails of the first three channels: something to score that costs nothing."""
        small = functional.adaptive_avg_pool2d(latents[:, :3], THUMBNAIL).sigmoid().permute(0, 2, 3, 1)
        return (small * 255).round().byte().cpu().numpy()


def model_size(transformer: FluxTransformer2DModel, num_text_tokens: int) -> ModelSize:
    """The size of a transformer that has no adapter yet, alone."""
    weights = {name: TensorShape("BF16", tuple(tensor.shape)) for name, tensor in transformer.state_dict().items()}
    return ModelSize(
        transformer=weights, encoders=0, autoencoder=0, pixels_a_token=PIXELS_A_TOKEN, text_tokens=num_text_tokens,
        image_size=1024, head_width=transformer.config.attention_head_dim,
    )  # fmt: skip


@dataclass(frozen=True)
class Iteration:
    """One iteration as it was measured. Bytes are the most that were allocated on a GPU; None on a CPU."""

    window_start: int
    rollout_seconds: float
    training_seconds: float
    num_forwards: int
    num_references: int
    num_trained_steps: int
    rollout_bytes: int | None
    training_bytes: int | None


def random_transformer(config: dict[str, Any], device: torch.device) -> FluxTransformer2DModel:
    """The transformer in bfloat16, made where it will run: 24 GB need never pass through the host."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return FluxTransformer2DModel(**config)
    finally:
        torch.set_default_dtype(before)


def recipe_settings(name: str, resolution: int, arguments: argparse.Namespace) -> RunSettings:
    """A preset on FLUX.1 with dev's guidance; everything else as the preset and the command line say."""
    data = PRESETS[name].make().model_dump()
    changes: dict[str, Any] = {
        "model": {"name": "flux", "precision": "bfloat16", "resolution": resolution},
        "rewards": [{"name": "vividness"}],
        "sampling": {"guidance_scale": 3.5},
        "grpo": {"prompts_per_iteration": arguments.prompts},
        "tuning": {"gradient_checkpointing": arguments.gradient_checkpointing},
        "compute": {"device": arguments.device, "micro_batch": arguments.micro_batch},
    }
    for change in (changes, arguments.changes):
        for key, value in change.items():
            data[key] = data[key] | value if isinstance(value, dict) else value
    settings = RunSettings.model_validate(data)
    if settings.tuning.method != "lora":
        raise ValueError("This benchmark measures LoRA: its operations are counted for frozen weights.")
    return settings


def measure_iteration(run: Run, settings: RunSettings) -> Iteration:
    """One iteration of the engine's own rollout and update under `settings`."""
    run.settings = settings
    run.counter.take()
    start = _settled(run.device)
    with sampling_policy(run):
        batch = sample_and_score(run)
    sampled, rollout_bytes = _settled(run.device), _peak_bytes(run.device)
    num_forwards = run.counter.take()
    stats = update(run, batch)
    trained = _settled(run.device)
    run.step += 1
    position = batch.rollout.plan.window_start
    assert num_forwards == work_at(settings, position).rollout, "the engine does what its formulas say"
    return Iteration(
        window_start=position, rollout_seconds=sampled - start, training_seconds=trained - sampled,
        num_forwards=num_forwards, num_references=run.counter.take(), num_trained_steps=stats.num_trained,
        rollout_bytes=rollout_bytes, training_bytes=_peak_bytes(run.device),
    )  # fmt: skip


def _settled(device: torch.device) -> float:
    """The time, once the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> int | None:
    """The most bytes allocated on a GPU since the last time this was asked."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def measure_case(name: str, resolution: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """A recipe at a resolution: warmed up by a short iteration, then measured at each position of its window."""
    size, settings = SIZES[arguments.size], recipe_settings(name, resolution, arguments)
    device = find_device(settings.compute.device)
    begun = time.perf_counter()
    model = BareFlux(size, resolution, device)
    flops = count_flops(model_size(model.transformer, size.num_text_tokens), settings)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(settings, Path(folder), lambda _: None, None, model)
        print(f"{name} at {resolution}: ready after {_settled(device) - begun:.0f} s", flush=True)
        measure_iteration(run, _short(settings))
        _peak_bytes(device)
        rows: list[Iteration] = []
        for place in range(arguments.positions):
            rows.append(measure_iteration(run, at_round(settings, place, arguments.positions)))
            print(
                f"  window at {rows[-1].window_start}: rollout {rows[-1].rollout_seconds:.2f} s, "
                f"training {rows[-1].training_seconds:.2f} s", flush=True,
            )  # fmt: skip
    return summarise(rows, flops, arguments.peak_tflops) | {"iterations": [asdict(row) for row in rows]}


def _short(settings: RunSettings) -> RunSettings:
    """The same batches at the fewest steps, with nothing else changed: for kernels and allocator to warm up on."""
    steps = 4
    window = settings.window.model_copy(update={"size": 1, "start": 0, "last": None, "strategy": "frozen"})
    nft = settings.nft.model_copy(update={"timesteps_per_image": 1})
    sampling = settings.sampling.model_copy(update={"num_steps": steps})
    return settings.model_copy(update={"window": window, "nft": nft, "sampling": sampling})


def summarise(rows: Sequence[Iteration], flops: Flops, peak_tflops: float | None) -> dict[str, Any]:
    """Means over the iterations, achieved TFLOP/s, and utilisation where a peak is known."""
    rollout, training = (statistics.fmean(column) for column in zip(*(
        (row.rollout_seconds, row.training_seconds) for row in rows
    ), strict=True))  # fmt: skip
    rollout_flops = statistics.fmean(row.num_forwards for row in rows) * flops.forward
    training_flops = statistics.fmean(
        row.num_trained_steps * flops.training + row.num_references * flops.forward for row in rows
    )
    achieved = {"rollout": rollout_flops / rollout / 1e12, "training": training_flops / training / 1e12}
    used = {
        phase: None if peak_tflops is None else round(value / peak_tflops, 4) for phase, value in achieved.items()
    }
    peaks = [row.training_bytes and max(row.training_bytes, row.rollout_bytes or 0) for row in rows]
    return {
        "seconds": {"rollout": rollout, "training": training, "iteration": rollout + training},
        "tflops": achieved,
        "utilisation": used,
        "peak_memory_gib": None if peaks[0] is None else max(peak or 0 for peak in peaks) / 2**30,
        "forward_tflop": flops.forward / 1e12,
        "training_tflop": flops.training / 1e12,
    }


def table(cases: Sequence[dict[str, Any]]) -> str:
    """What was measured, a case a line."""
    lines = ["recipe                side   rollout  training  iteration   util. r.  util. t.   memory"]
    for case in cases:
        start = f"{case['recipe']:20} {case['resolution']:5}"
        if "error" in case:
            lines.append(f"{start}   {case['error']}")
            continue
        seconds, used, memory = case["seconds"], case["utilisation"], case["peak_memory_gib"]
        shares = [f"{share:9.1%}" if share is not None else "        –" for share in used.values()]
        lines.append(
            f"{start} {seconds['rollout']:8.2f}s {seconds['training']:8.2f}s {seconds['iteration']:9.2f}s  "
            f"{shares[0]} {shares[1]}  " + (f"{memory:5.1f} GiB" if memory is not None else "    –")
        )
    return "\n".join(lines)


def measure(arguments: argparse.Namespace) -> Path:
    """Every recipe at every resolution; returns the file of results, which is written after each."""
    name = device_name()
    stem = "flux_step" if arguments.size == "flux" else f"flux_step_{arguments.size}"
    path = arguments.results / f"{stem}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    report: dict[str, Any] = {
        "device": name, "versions": versions(), "peak_tflops": arguments.peak_tflops, "size": arguments.size,
        "config": SIZES[arguments.size].config, "cases": [],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    for resolution in arguments.resolutions:
        for recipe in arguments.presets:
            settings = recipe_settings(recipe, resolution, arguments)
            case = {"recipe": recipe, "resolution": resolution, "settings": settings.model_dump(mode="json")}
            try:
                case |= measure_case(recipe, resolution, arguments)
            except torch.OutOfMemoryError:
                case |= {"error": "out of memory"}
            # The next transformer needs the room of this one.
            gc.collect()
            torch.cuda.empty_cache()
            report["cases"].append(case)
            path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["cases"]))
    return path


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what was left out filled in for the size and the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="flux")
    parser.add_argument("--presets", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--resolutions", type=int, nargs="+", help="pixels a side, multiples of 16")
    parser.add_argument("--positions", type=int, default=2, help="positions of a moving window to measure at")
    parser.add_argument("--prompts", type=int, default=1, help="prompts an iteration")
    parser.add_argument("--micro-batch", type=int, help="images in one forward")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense bfloat16 peak, if the table lacks it")
    parser.add_argument("--changes", type=json.loads, default={}, help="JSON of settings to change")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parsed = parser.parse_args(arguments)
    size, name = SIZES[parsed.size], device_name()
    parsed.resolutions = parsed.resolutions or size.resolutions
    parsed.micro_batch = parsed.micro_batch or size.micro_batch
    if parsed.peak_tflops is None and parsed.device != "cpu":
        gpu = find_gpu(name)
        parsed.peak_tflops = gpu and gpu.bfloat16
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write and print."""
    print(f"Written to {measure(parse(arguments))}.")


if __name__ == "__main__":
    main()
