"""The training loop, in reading order: sample, score, advantage, update, report.

MixGRPO (arXiv 2507.21802): a group of images a prompt, stochastic steps inside a sliding window, deterministic ones
elsewhere, and a clipped policy-gradient update on the window's steps alone.

Deviations from the paper: the group's common ODE prefix is computed once (engine/sampling/rollout.py); samples whose
advantage is zero are not trained on, since their gradient is zero; every random draw is a function of the seed and the
iteration (engine/seeds.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.artifacts.checkpoint import Checkpoint, save_checkpoint
from engine.evaluation import evaluate
from engine.events import CheckpointSaved, Event, Finished, IterationDone, Message, PhaseSeconds, Started
from engine.models import PromptEmbeddings, TextToImage, load_model
from engine.objective.advantage import balanced_splits, group_advantages
from engine.objective.grpo import grpo_loss, kl_to_base
from engine.prompts import RunPrompts, load_prompts, prompts_of_iteration
from engine.rewards import Reward, make_rewards, score_all
from engine.sampling.rollout import Plan, Rollout, Velocity, make_plan, rollout
from engine.sampling.sde import Kernel, log_prob, make_kernel
from engine.sampling.window import window_start
from engine.seeds import derived_generator
from engine.settings import RewardName, RunSettings
from engine.tuning import RunningAverage, Trainable, make_trainable
from engine.versions import versions

Emit = Callable[[Event], None]


@dataclass
class Run:
    """Everything a run holds between iterations; `step` counts the finished ones."""

    settings: RunSettings
    out: Path
    emit: Emit
    model: TextToImage
    device: torch.device
    prompts: RunPrompts
    rewards: dict[RewardName, Reward]
    trainable: Trainable
    optimiser: torch.optim.AdamW
    kernel: Kernel
    average: RunningAverage | None
    step: int = 0
    begun: float = field(default_factory=time.perf_counter)
    first_step: int = 0


@dataclass(frozen=True)
class Batch:
    """What sampling and scoring made of an iteration: N = P·G images, prompt-major."""

    embeddings: PromptEmbeddings
    rollout: Rollout
    rewards: dict[str, float]
    num_failed: int
    advantages: Tensor
    seconds: dict[str, float]


@dataclass(frozen=True)
class UpdateStats:
    """Means over an iteration's updates; `drift` is of the first update alone."""

    loss: float
    grad_norm: float
    drift: float
    clipped_share: float
    num_trained: int


def train(
    settings: RunSettings,
    out: Path,
    emit: Emit,
    *,
    checkpoint: Checkpoint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run all iterations, or until `should_stop`; the last event is returned as well as emitted.

    Args:
        settings: the run.
        out: the run's folder, for samples and checkpoints.
        emit: called with every event, in order.
        checkpoint: where to resume from.
        should_stop: asked between iterations; when true, a checkpoint is saved and the run ends as "stopped".

    Raises:
        ValueError: a setting that cannot work, in a sentence.
        DiskFullError: the disk is full; the newest complete checkpoint is untouched.
    """
    run = prepare(settings, out, emit, checkpoint)
    emit(_started(run))
    for note in run.prompts.notes:
        emit(Message(time=time.time(), text=note))
    if run.step == 0:
        _evaluate(run)
    while run.step < settings.iterations:
        if should_stop():
            if run.step > run.first_step:
                _save(run)
            return _finish(run, "stopped")
        _iterate(run)
        last = run.step == settings.iterations
        if last or run.step % settings.evaluation.every == 0:
            _evaluate(run)
        if last or run.step % settings.checkpoints.every == 0:
            _save(run)
    return _finish(run, "completed")


def prepare(settings: RunSettings, out: Path, emit: Emit, checkpoint: Checkpoint | None) -> Run:
    """Load the model, the prompts and the rewards, and restore a checkpoint's state."""
    if settings.compute.num_threads:
        torch.set_num_threads(settings.compute.num_threads)
    device = _device(settings.compute.device)
    prompts = load_prompts(settings)
    rewards = make_rewards(reward.name for reward in settings.rewards)
    for reward in rewards.values():
        reward.check_prompts((*prompts.training, *prompts.held_out))
    model = load_model(settings.model)
    model.to(device)
    trainable = make_trainable(model, settings.tuning, settings.seed, keep_base=settings.grpo.kl_weight > 0)
    options = settings.optimiser
    optimiser = torch.optim.AdamW(
        trainable.parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    average = RunningAverage(trainable.state(), options.ema_decay) if options.ema_decay > 0 else None
    run = Run(
        settings=settings, out=out, emit=emit, model=model, device=device, prompts=prompts, rewards=rewards,
        trainable=trainable, optimiser=optimiser, kernel=make_kernel(settings.sampling.kernel, settings.sampling.eta),
        average=average,
    )  # fmt: skip
    if checkpoint is not None:
        _restore(run, checkpoint)
    return run


def _iterate(run: Run) -> None:
    batch = sample_and_score(run)
    begun = time.perf_counter()
    stats = update(run, batch)
    run.step += 1
    seconds = PhaseSeconds(**batch.seconds, train=time.perf_counter() - begun)
    done = run.step - run.first_step
    rate = (time.perf_counter() - run.begun) / done
    run.emit(
        IterationDone(
            time=time.time(),
            step=run.step,
            rewards=batch.rewards,
            failed_scores=batch.num_failed,
            loss=stats.loss,
            grad_norm=stats.grad_norm,
            ratio_drift=stats.drift,
            clipped_share=stats.clipped_share,
            window_start=batch.rollout.plan.window_start,
            seconds=seconds,
            num_forwards=batch.rollout.num_forwards,
            num_trained_steps=stats.num_trained,
            eta_seconds=rate * (run.settings.iterations - run.step),
        )
    )


def sample_and_score(run: Run) -> Batch:
    """Draw G images for each of P prompts, score them, and compare each with its group."""
    settings, iteration = run.settings, run.step
    grpo = settings.grpo
    prompts = prompts_of_iteration(
        run.prompts.training, iteration, grpo.prompts_per_iteration, settings.prompts.seed + settings.seed
    )
    begun = time.perf_counter()
    embeddings = run.model.encode(prompts)
    drawn = rollout(
        _velocity(run, embeddings, settings.sampling.guidance_scale),
        _initial_noise(run, iteration),
        num_prompts=len(prompts),
        group_size=grpo.group_size,
        plan=_plan(run, iteration),
        kernel=run.kernel,
        generator=derived_generator(settings.seed, "step_noise", iteration),
        shared_prefix=settings.sampling.shared_prefix,
        micro_batch=settings.compute.micro_batch,
    )
    sampled = time.perf_counter()
    images = run.model.decode(drawn.latents)
    decoded = time.perf_counter()
    scored = score_all(run.rewards, images, [prompt for prompt in prompts for _ in range(grpo.group_size)])
    for text in scored.messages:
        run.emit(Message(time=time.time(), level="warning", text=text))
    advantages = group_advantages(
        {name: torch.from_numpy(values).view(len(prompts), grpo.group_size) for name, values in scored.values.items()},
        {reward.name: reward.weight for reward in settings.rewards},
        mix=grpo.reward_mix,
        clip=grpo.advantage_clip,
    ).flatten()
    means = {name: float(np.nanmean(values)) for name, values in scored.values.items() if np.isfinite(values).any()}
    seconds = {
        "sample": sampled - begun,
        "decode": decoded - sampled,
        "score": time.perf_counter() - decoded,
    }
    num_failed = sum(int((~np.isfinite(values)).sum()) for values in scored.values.values())
    return Batch(embeddings, drawn, means, num_failed, advantages, seconds)


def update(run: Run, batch: Batch) -> UpdateStats:
    """Split the images into balanced updates, and take one optimiser step on each."""
    settings = run.settings
    splits = balanced_splits(
        batch.advantages, settings.grpo.updates_per_iteration, derived_generator(settings.seed, "updates", run.step)
    )
    taken: list[tuple[float, float, float]] = []  # loss, gradient norm and clipped share of each optimiser step
    drift, num_trained = 0.0, 0
    for split in splits:
        chosen = split if settings.grpo.kl_weight > 0 else split[batch.advantages[split] != 0]
        if len(chosen) == 0:
            continue
        loss, share, largest = _accumulate(run, batch, chosen, len(split))
        norm = torch.nn.utils.clip_grad_norm_(run.trainable.parameters.values(), settings.optimiser.max_grad_norm)
        if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
            raise ValueError(
                f"The loss is no longer a finite number at iteration {run.step + 1}, so training cannot go on; "
                "start again with a smaller optimiser.learning_rate."
            )
        run.optimiser.step()
        run.optimiser.zero_grad(set_to_none=True)
        if run.average is not None:
            run.average.update(run.trainable.parameters)
        drift = drift if taken else largest
        taken.append((loss, float(norm), share))
        num_trained += len(chosen) * settings.window.size
    loss, grad_norm, clipped_share = np.mean(taken, axis=0).tolist() if taken else (0.0, 0.0, 0.0)
    return UpdateStats(loss, grad_norm, drift, clipped_share, num_trained)


def _accumulate(run: Run, batch: Batch, chosen: Tensor, num_images: int) -> tuple[float, float, float]:
    """Add the gradient of the GRPO loss over the chosen images and the window's steps, a mean over `num_images`.

    Returns the loss, the clipped share, and the largest |ρ−1|.
    """
    plan, window = batch.rollout.plan, run.settings.window.size
    guidance, group_size = run.settings.sampling.guidance_scale, run.settings.grpo.group_size
    velocity = _velocity(run, batch.embeddings, guidance)
    total, clipped, drift = 0.0, 0.0, 0.0
    for position, (sigma, sigma_next) in enumerate(plan.window_steps):
        for part in chosen.split(run.settings.compute.micro_batch):
            latents = batch.rollout.states[position, part]
            rows = (part // group_size).to(run.device)
            transition = run.kernel.transition(
                latents, velocity(latents, sigma, rows), sigma, sigma_next, plan.sigma_first
            )
            new = log_prob(transition, batch.rollout.states[position + 1, part])
            terms = grpo_loss(
                new, batch.rollout.log_probs[position, part], batch.advantages[part].to(run.device),
                run.settings.grpo.clip_range,
            )  # fmt: skip
            loss = terms.loss
            if run.settings.grpo.kl_weight > 0:
                with torch.no_grad(), run.trainable.left_out():
                    base = run.kernel.transition(
                        latents, velocity(latents, sigma, rows), sigma, sigma_next, plan.sigma_first
                    )
                loss = loss + run.settings.grpo.kl_weight * kl_to_base(transition.mean, base.mean, transition.std)
            share = len(part) / (num_images * window)
            (loss * share).backward()
            total += float(loss.detach()) * share
            clipped += float(terms.clipped_share) * share
            drift = max(drift, float((terms.ratio.detach() - 1).abs().max()))
    return total, clipped, drift


def _velocity(run: Run, embeddings: PromptEmbeddings, guidance_scale: float) -> Velocity:
    """The model's velocity for one set of prompts, in the run's precision."""
    precise = run.settings.model.precision == "float32"

    def velocity(latents: Tensor, sigma: float, rows: Tensor) -> Tensor:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=not precise):
            return run.model.velocity(latents, sigma, embeddings, rows, guidance_scale)

    return velocity


def _initial_noise(run: Run, iteration: int) -> Tensor:
    grpo = run.settings.grpo
    count = grpo.prompts_per_iteration * (1 if run.settings.sampling.shared_noise else grpo.group_size)
    return run.model.noise(derived_generator(run.settings.seed, "initial_noise", iteration), count)


def _plan(run: Run, iteration: int) -> Plan:
    settings = run.settings
    start = window_start(settings.window, settings.sampling.num_steps, settings.seed, iteration)
    model_sigmas = run.model.sigmas(settings.sampling.num_steps) if settings.sampling.shift == "model" else None
    return make_plan(settings.sampling, settings.window, settings.flash, start, model_sigmas)


@torch.no_grad()
def _evaluate(run: Run) -> None:
    settings = run.settings

    def velocity_of(prompts: Sequence[str], guidance_scale: float) -> Velocity:
        return _velocity(run, run.model.encode(prompts), guidance_scale)

    def measure() -> None:
        run.emit(
            evaluate(
                run.model, velocity_of, run.rewards, run.prompts.held_out, settings.evaluation,
                step=run.step, out=run.out, micro_batch=settings.compute.micro_batch,
            )
        )  # fmt: skip

    if run.average is None:
        measure()
        return
    with run.trainable.replaced_by(run.average.average):
        measure()


def _save(run: Run) -> None:
    name = "adapter" if run.settings.tuning.method == "lora" else "transformer"
    tensors: dict[str, dict[str, Tensor]] = {f"{name}.safetensors": run.trainable.state()}
    tensors["optimiser.safetensors"] = _optimiser_tensors(run)
    if run.average is not None:
        tensors["ema.safetensors"] = run.average.average
    path = save_checkpoint(
        run.out / "checkpoints", run.step, tensors, {"step": run.step, "base": str(run.settings.model.name)},
        run.settings, versions(), keep=run.settings.checkpoints.keep,
    )  # fmt: skip
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    run.emit(
        CheckpointSaved(time=time.time(), step=run.step, path=path.relative_to(run.out).as_posix(), num_bytes=num_bytes)
    )


def _optimiser_tensors(run: Run) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<weight>/<exp_avg | exp_avg_sq | step>`."""
    return {
        f"{name}/{key}": value.detach().cpu().clone()
        for name, parameter in run.trainable.parameters.items()
        for key, value in run.optimiser.state.get(parameter, {}).items()
    }


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    name = "adapter" if run.settings.tuning.method == "lora" else "transformer"
    run.trainable.load(checkpoint.tensors[f"{name}.safetensors"])
    states: dict[str, dict[str, Any]] = {}
    for key, value in checkpoint.tensors["optimiser.safetensors"].items():
        weight, entry = key.rsplit("/", 1)
        states.setdefault(weight, {})[entry] = value
    for weight, state in states.items():
        parameter = run.trainable.parameters[weight]
        run.optimiser.state[parameter] = {
            entry: value if entry == "step" else value.to(parameter.device) for entry, value in state.items()
        }
    if run.average is not None:
        run.average.average = dict(checkpoint.tensors["ema.safetensors"])
    run.step = run.first_step = checkpoint.step


def _started(run: Run) -> Started:
    kind = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    return Started(
        time=time.time(), step=run.step, iterations=run.settings.iterations, device=kind, versions=versions()
    )


def _finish(run: Run, outcome: Any) -> Finished:
    finished = Finished(time=time.time(), step=run.step, outcome=outcome)
    run.emit(finished)
    return finished


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError('compute.device is "cuda", but torch sees no CUDA GPU here; use "auto" or "cpu".')
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
