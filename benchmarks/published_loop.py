"""The published training loop beside Palate's engine: seconds an iteration, on the same small FLUX and recipe.

`python benchmarks/published_loop.py [--rounds 6] [--recipes mixgrpo dance_grpo] [--tuning full lora]`
`python benchmarks/published_loop.py --size tiny --rounds 2` is the same in miniature.

A round runs an iteration of each loop, the window at the next of its positions, so that a busy moment of the machine
falls on all alike. `Published` has the structure of the code published with MixGRPO, which is DanceGRPO's: an image
alone from noise to score, its trained steps one by one, a log-probability of every step, figures read from the device
after each backward pass, blocks recomputed in training (gradient checkpointing). Nothing of it runs on several GPUs
here, and what it writes, prints and shows is left out. Written anew for this measurement, with the engine's own
kernels, advantages and rewards; no line is copied. Writes benchmarks/results/published_loop.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flux_step import BareFlux, Size
from measuring import at_round, device_name
from torch import Tensor

from engine.generators import derived_generator
from engine.models import PromptEmbeddings
from engine.models.velocity import prompt_velocity
from engine.objective.advantage import balanced_splits, group_advantages
from engine.objective.grpo import grpo_loss
from engine.presets import PRESETS
from engine.rewards import make_rewards, score_all
from engine.run import find_device, prepare
from engine.sampling.schedule import flow_sigmas
from engine.sampling.sde import draw, log_prob, make_kernel, ode_step
from engine.sampling.window import window_start
from engine.settings import RunSettings
from engine.train import sample_and_score, update
from engine.tuning import make_trainable
from engine.versions import versions
from engine.work import num_trained_steps

RESULTS = Path(__file__).parent / "results"
RECIPES = ("mixgrpo", "dance_grpo")
# Palate's variants, each against the published loop with gradient checkpointing, as it is published, and without.
LOOPS = ("published", "published, no checkpointing", "Palate, checkpointing", "Palate")
SIZES = {
    "small": Size(
        {
            "in_channels": 64, "num_layers": 3, "num_single_layers": 6, "attention_head_dim": 32,
            "num_attention_heads": 4, "joint_attention_dim": 128, "pooled_projection_dim": 64,
            "guidance_embeds": True, "axes_dims_rope": (8, 12, 12),
        },
        num_text_tokens=32, resolutions=(128,), micro_batch=48,
    ),
    "tiny": Size(
        {
            "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
            "num_attention_heads": 1, "joint_attention_dim": 16, "pooled_projection_dim": 16,
            "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
        },
        num_text_tokens=4, resolutions=(32,), micro_batch=48,
    ),
}  # fmt: skip


class SmallFlux(BareFlux):
    """A small FLUX.1 of random weights in float32, as the published loop holds what it trains."""

    def __init__(self, size: Size, resolution: int, device: torch.device) -> None:
        super().__init__(size, resolution, device)
        self.transformer.float()

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Random embeddings, the same for the same number of prompts."""
        torch.manual_seed(len(prompts))
        return PromptEmbeddings({name: tensor.float() for name, tensor in super().encode(prompts).texts.items()})


@dataclass(frozen=True)
class Trajectory:
    """One image: latents (T+1, 1, …), the log-probability of each step (T, 1), and its scores by reward."""

    latents: list[Tensor]
    log_probs: list[Tensor]
    scores: dict[str, np.ndarray]


class Published:
    """The published loop. `counts`: forwards without gradient, and trained steps, of the latest iteration."""

    def __init__(self, settings: RunSettings, model: SmallFlux) -> None:
        self.settings, self.model = settings, model
        self.trainable = make_trainable(model, settings.tuning, settings.seed, keep_base=False)
        options = settings.optimiser
        self.optimiser = torch.optim.AdamW(
            self.trainable.parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.kernel = make_kernel(settings.sampling.kernel, settings.sampling.eta)
        self.rewards = make_rewards(settings.rewards, model.device)
        assert isinstance(settings.sampling.shift, float), "the published loop's grid has a number for its shift"
        self.sigmas = flow_sigmas(settings.sampling.num_steps, settings.sampling.shift).tolist()
        self.iteration, self.counts = 0, (0, 0)

    def iterate(self, settings: RunSettings) -> float:
        """One iteration of one prompt's group; the sum of its losses."""
        self.counts = (0, 0)
        generator = derived_generator(settings.seed, "step_noise", self.iteration)
        start = window_start(settings.window, settings.sampling.num_steps, settings.seed, self.iteration)
        window = range(start, start + settings.window.size)
        embeddings = self.model.encode(["a prompt"])
        velocity = prompt_velocity(
            self.model, embeddings, settings.sampling.guidance_scale, settings.model.precision
        )
        noise = self.model.noise(derived_generator(settings.seed, "initial_noise", self.iteration), 1)
        group = [self._sample(velocity, noise, window, generator) for _ in range(settings.grpo.group_size)]
        loss = self._train(velocity, group, window, generator)
        self.iteration += 1
        return loss

    def _time(self, step: int) -> float:
        """σ as the published loop tells it to the transformer: whole thousandths."""
        return int(self.sigmas[step] * 1000) / 1000

    @torch.no_grad()
    def _sample(self, velocity: Any, latents: Tensor, window: range, generator: torch.Generator) -> Trajectory:
        """One image, alone, by all of the grid's steps, decoded and scored."""
        states, log_probs, row = [latents], [], torch.zeros(1, dtype=torch.long)
        for step in range(len(self.sigmas) - 1):
            self.model.transformer.eval()
            self.counts = (self.counts[0] + 1, self.counts[1])
            predicted = velocity(latents, self._time(step), row)
            transition = self._transition(latents, predicted, step)
            if step in window:
                latents = draw(transition, torch.randn(latents.shape, generator=generator).to(latents.device))
            else:
                latents = ode_step(latents, predicted, self.sigmas[step], self.sigmas[step + 1])
            states.append(latents)
            log_probs.append(log_prob(transition, latents))
        scores = score_all(self.rewards, self.model.decode(latents), ["a prompt"], 1)
        return Trajectory(states, log_probs, scores.values)

    def _train(
        self, velocity: Any, group: Sequence[Trajectory], window: range, generator: torch.Generator
    ) -> float:
        """A backward pass for each trained step of each image, and an optimiser step after every few images."""
        settings, grpo = self.settings, self.settings.grpo
        scores = {name: [image.scores[name].item() for image in group] for name in self.rewards}
        advantages = group_advantages(
            {name: torch.tensor([values]) for name, values in scores.items()},
            {reward.key: reward.weight for reward in settings.rewards}, mix=grpo.reward_mix, clip=grpo.advantage_clip,
        ).flatten()  # fmt: skip
        order = torch.cat(balanced_splits(advantages, grpo.updates_per_iteration, generator)).tolist()
        accumulated = len(group) // grpo.updates_per_iteration
        num_trained, row, total = num_trained_steps(settings), torch.zeros(1, dtype=torch.long), 0.0
        for place, image in enumerate(order):
            steps = [window[i] for i in torch.randperm(len(window), generator=generator)[:num_trained].tolist()]
            for step in steps:
                self.model.transformer.train()
                states, old = group[image].latents, group[image].log_probs[step]
                predicted = velocity(states[step], self._time(step), row)
                new = log_prob(self._transition(states[step], predicted, step), states[step + 1])
                terms = grpo_loss(new, old, advantages[image].to(new), grpo.clip_range)
                loss = terms.loss / (accumulated * num_trained)
                loss.backward()
                total += loss.item()
                terms.clipped_share.item()
                self.counts = (self.counts[0], self.counts[1] + 1)
            if (place + 1) % accumulated == 0:
                torch.nn.utils.clip_grad_norm_(
                    self.trainable.parameters.values(), settings.optimiser.max_grad_norm
                ).item()
                self.optimiser.step()
                self.optimiser.zero_grad()
        return total

    def _transition(self, latents: Tensor, velocity: Tensor, step: int) -> Any:
        # The last step has no noise of the Flow-SDE's; the published loop computes its log-probability all the same.
        following = max(self.sigmas[step + 1], 1e-3)
        return self.kernel.transition(latents, velocity, self.sigmas[step], following, self.sigmas[1])


def recipe_settings(name: str, tuning: str, arguments: argparse.Namespace, checkpointing: bool) -> RunSettings:
    """The preset on a small FLUX, one prompt an iteration, with dev's guidance and the published grid."""
    data = PRESETS[name].make().model_dump()
    data["model"] |= {"name": "flux", "precision": arguments.precision, "resolution": _size(arguments).resolutions[0]}
    data["sampling"] |= {"guidance_scale": 3.5}
    data["tuning"] |= {"method": tuning, "gradient_checkpointing": checkpointing}
    data["grpo"] |= {"prompts_per_iteration": 1}
    data["compute"] |= {"device": arguments.device, "micro_batch": _size(arguments).micro_batch}
    if torch.get_num_threads() == 1:
        data["compute"] |= {"num_threads": 1}
    data |= {"rewards": [{"name": "vividness"}]}
    for section, change in arguments.changes.items():
        data[section] |= change
    return RunSettings.model_validate(data)


def _size(arguments: argparse.Namespace) -> Size:
    return SIZES[arguments.size]


@dataclass(frozen=True)
class Loop:
    """What is timed: an iteration under settings, giving its forwards without gradient and its trained steps."""

    settings: RunSettings
    iterate: Callable[[RunSettings], tuple[int, int]]


def make_loop(name: str, recipe: str, tuning: str, arguments: argparse.Namespace, folder: Path) -> Loop:
    """A loop with a model of its own; all start from the same weights."""
    settings = recipe_settings(recipe, tuning, arguments, name in ("published", "Palate, checkpointing"))
    size = _size(arguments)
    model = SmallFlux(size, size.resolutions[0], find_device(arguments.device))
    model.to(find_device(arguments.device))
    if name.startswith("published"):
        published = Published(settings, model)

        def iterate_published(held: RunSettings) -> tuple[int, int]:
            published.iterate(held)
            return published.counts

        return Loop(settings, iterate_published)
    run = prepare(settings, folder, lambda _: None, None, model)

    def iterate(held: RunSettings) -> tuple[int, int]:
        run.settings = held
        run.counter.take()
        stats = update(run, sample_and_score(run))
        run.step += 1
        return run.counter.take(), stats.num_trained

    return Loop(settings, iterate)


def timed(loop: Loop, held: RunSettings) -> dict[str, float]:
    """Seconds of one iteration, on the clock and of the processor, and its counts."""
    _settle()
    begun, worked = time.perf_counter(), time.process_time()
    forwards, trained = loop.iterate(held)
    _settle()
    return {
        "seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - worked,
        "forwards": forwards, "trained_steps": trained,
    }  # fmt: skip


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(recipe: str, tuning: str, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every loop's iterations, in rounds; a first one of each, to warm up, is not counted."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory() as folder:
        loops = {name: make_loop(name, recipe, tuning, arguments, Path(folder)) for name in LOOPS}
        for loop in loops.values():
            timed(loop, at_round(loop.settings, 0, 1))
        for place in range(arguments.rounds):
            for name, loop in loops.items():
                rows[name].append(timed(loop, at_round(loop.settings, place, arguments.rounds)))
            print(f"{recipe}, {tuning}: round {place + 1} of {arguments.rounds}", flush=True)
    return rows


def summarise(rows: dict[str, list[dict[str, float]]], clock: str) -> dict[str, dict[str, float]]:
    """Means by loop, and each as a ratio to both published ones: the median over rounds, whose loops share a moment."""

    def ratio(name: str, other: str) -> float:
        pairs = zip(rows[name], rows[other], strict=True)
        return round(statistics.median(mine[clock] / theirs[clock] for mine, theirs in pairs), 4)

    return {
        name: {
            **{key: round(statistics.fmean(row[key] for row in loop), 4) for key in loop[0]},
            "ratio_to_published": ratio(name, LOOPS[0]),
            "ratio_to_published_without_checkpointing": ratio(name, LOOPS[1]),
        }
        for name, loop in rows.items()
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--tuning", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--clock", choices=["seconds", "processor_seconds"], default="seconds", help="of the ratios")
    parser.add_argument("--changes", type=json.loads, default={}, help="JSON of settings to change, by section")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write and print."""
    parsed = parse(arguments)
    report: dict[str, Any] = {
        "device": device_name(), "versions": versions(), "size": parsed.size, "config": _size(parsed).config,
        "precision": parsed.precision, "rounds": parsed.rounds, "clock": parsed.clock, "recipes": {},
    }  # fmt: skip
    parsed.results.mkdir(parents=True, exist_ok=True)
    path = parsed.results / ("published_loop.json" if parsed.size == "small" else f"published_loop_{parsed.size}.json")
    for recipe in parsed.recipes:
        for tuning in parsed.tuning:
            summary = summarise(measure(recipe, tuning, parsed), parsed.clock)
            report["recipes"].setdefault(recipe, {})[tuning] = summary
            path.write_text(json.dumps(report, indent=1) + "\n")
            for name, figures in summary.items():
                print(
                    f"{recipe:11} {tuning:5} {name:28} {figures[parsed.clock]:7.2f} s  "
                    f"{figures['ratio_to_published']:.3f} of the published loop"
                )
    print(f"Written to {path}.")


if __name__ == "__main__":
    main()
