"""The training loop, in reading order: sample, score, advantage, update, report.

MixGRPO (arXiv 2507.21802): a group of images a prompt, stochastic steps inside a sliding window, deterministic ones
elsewhere, and a clipped policy-gradient update on the window's steps alone. Other methods are other settings of the
same parts; DiffusionNFT (2509.16117) draws without a window and has an objective of its own.

Deviations from the paper: the group's common ODE prefix is computed once (engine/sampling/rollout.py); samples whose
advantage is zero are not trained on where their gradient is zero; every random draw is a function of the seed and the
iteration (engine/seeds.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.artifacts.checkpoint import Checkpoint
from engine.batching import decode
from engine.compilation import compilation_told
from engine.evaluation import evaluate
from engine.events import Finished, IterationDone, Message, PhaseSeconds, Started
from engine.forecast import forecast
from engine.generators import derived_generator
from engine.gradients import accumulate, clip_gradient
from engine.learning_rate import learning_rate_at
from engine.models import PromptEmbeddings, base_in_words
from engine.models.velocity import prompt_velocity
from engine.objective.advantage import balanced_splits, best_and_worst, group_advantages, group_spreads
from engine.objective.base import ImageVelocity, Objective, choose_steps
from engine.objective.grpo import GrpoObjective
from engine.objective.nft import NftObjective, noise_images
from engine.probing import size_batches
from engine.prompts import prompts_of_iteration
from engine.ranks import ALONE, Ranks, Share
from engine.rewards import score_all
from engine.run import Emit, Run, device_name, prepare, sampling_policy, save, stop, warn
from engine.sampling.rollout import MicroBatches, Plan, Rollout, Velocity, make_plan, rollout
from engine.sampling.window import window_start
from engine.settings import RunSettings
from engine.versions import versions
from engine.work import num_trained_steps


@dataclass(frozen=True)
class Batch:
    """What sampling and scoring made of an iteration: N = P·G images, prompt-major.

    Embeddings and rollout are of a rank's own `share` of the images, everything else of all.
    """

    share: Share
    embeddings: PromptEmbeddings
    rollout: Rollout
    rewards: dict[str, float]
    spreads: dict[str, float]
    num_failed: int
    failed_shares: dict[str, float]
    diversity: float
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
    ranks: Ranks = ALONE,
) -> Finished:
    """Run all iterations, or until `should_stop`; the last event is returned as well as emitted.

    Args:
        settings: the run.
        out: the run's folder, for samples and checkpoints.
        emit: called with every event, in order, on every rank; those of the main one are the run's.
        checkpoint: where to resume from.
        should_stop: asked between iterations; true on any rank: a checkpoint is saved, the run ends as "stopped".
        ranks: this process among those of the run; each of them calls this function.

    Raises:
        ValueError: a setting that cannot work, in a sentence.
        DiskFullError: the disk is full; the newest complete checkpoint is untouched.
    """
    run = prepare(settings, out, emit, checkpoint, ranks=ranks)
    with compilation_told():
        return _train(run, should_stop)


def _train(run: Run, should_stop: Callable[[], bool]) -> Finished:
    settings, ranks = run.settings, run.ranks
    run.emit(_started(run))
    if run.step == 0 and ranks.is_main:
        run.emit(Message(time=time.time(), text=forecast(settings, run.device)))
    size_batches(run)
    for note in run.prompts.notes:
        run.emit(Message(time=time.time(), text=note))
    if run.step == 0:
        _evaluate(run)
    while run.step < settings.iterations:
        if ranks.any(should_stop()):
            save(run)
            return _finish(run, "stopped")
        wrong = _iterate(run)
        last = run.step == settings.iterations
        if last or run.step % settings.evaluation.every == 0:
            wrong += _evaluate(run)
        if wrong and settings.guards.action == "stop":
            stop(run, wrong[0])
        if last or run.step % settings.checkpoints.every == 0:
            save(run)
    return _finish(run, "completed")


def _iterate(run: Run) -> list[str]:
    """One iteration, and its event; returns what the guards found."""
    run.counter.take()
    with sampling_policy(run):
        batch = sample_and_score(run)
    failure = run.guards.fails(batch.failed_shares)
    if failure:
        stop(run, failure)
    begun = time.perf_counter()
    stats = update(run, batch)
    if run.sampler is not None:
        run.sampler.update(run.trainable.parameters)
    run.step += 1
    seconds = PhaseSeconds(**batch.seconds, train=time.perf_counter() - begun)
    done = run.step - run.first_step
    rate = (time.perf_counter() - run.begun) / done
    run.emit(
        IterationDone(
            time=time.time(),
            step=run.step,
            rewards=batch.rewards,
            spreads=batch.spreads,
            failed_scores=batch.num_failed,
            loss=stats.loss,
            grad_norm=stats.grad_norm,
            ratio_drift=stats.drift,
            clipped_share=stats.clipped_share,
            diversity=batch.diversity,
            window_start=batch.rollout.plan.window_start,
            seconds=seconds,
            num_forwards=sum(run.ranks.gather(run.counter.take())),
            num_trained_steps=stats.num_trained,
            eta_seconds=rate * (run.settings.iterations - run.step),
        )
    )
    # DiffusionNFT's sampler departs from the policy by design.
    drift = stats.drift if run.settings.method == "grpo" else 0.0
    return _alarm(run, run.guards.after_iteration(drift, batch.diversity))


def sample_and_score(run: Run) -> Batch:
    """Draw G images for each of P prompts, score them, and compare each with its group.

    A rank draws and scores the groups of its own share of the prompts, and hears the scores of the others.
    """
    settings, iteration = run.settings, run.step
    grpo = settings.grpo
    groups = run.ranks.share(grpo.prompts_per_iteration)
    share = groups.times(grpo.group_size)
    prompts = prompts_of_iteration(
        run.prompts.training, iteration, grpo.prompts_per_iteration, settings.prompts.seed + settings.seed
    )[groups.rows]
    begun = time.perf_counter()
    embeddings = run.encode(prompts)
    drawn = rollout(
        prompt_velocity(run.model, embeddings, settings.sampling.guidance_scale, settings.model.precision),
        _initial_noise(run, iteration, groups),
        num_prompts=len(prompts),
        group_size=grpo.group_size,
        plan=_plan(run, iteration),
        kernel=run.kernel,
        generator=derived_generator(settings.seed, "step_noise", iteration),
        shared_prefix=settings.sampling.shared_prefix,
        micro_batch=run.sizes.sample,
        share=share,
    )
    sampled = time.perf_counter()
    images = decode(run.model, drawn.latents, run.sizes.decode)
    decoded = time.perf_counter()
    scores, diversity = _scores_of_all(run, images, prompts, groups)
    grouped = {name: torch.from_numpy(values).view(-1, grpo.group_size) for name, values in scores.items()}
    advantages = group_advantages(
        grouped,
        {reward.key: reward.weight for reward in settings.rewards},
        gates={reward.key: reward.gate for reward in settings.rewards if reward.gate is not None},
        mix=grpo.reward_mix, clip=grpo.advantage_clip, std=grpo.advantage_std, trim=grpo.trim,
    ).flatten()  # fmt: skip
    means = {name: float(np.nanmean(values)) for name, values in scores.items() if np.isfinite(values).any()}
    seconds = {
        "sample": sampled - begun,
        "decode": decoded - sampled,
        "score": time.perf_counter() - decoded,
    }
    num_failed = sum(int((~np.isfinite(values)).sum()) for values in scores.values())
    failed_shares = {name: float((~np.isfinite(values)).mean()) for name, values in scores.items()}
    spreads = group_spreads(grouped)
    return Batch(share, embeddings, drawn, means, spreads, num_failed, failed_shares, diversity, advantages, seconds)


def _scores_of_all(
    run: Run, images: np.ndarray, prompts: Sequence[str], groups: Share
) -> tuple[dict[str, np.ndarray], float]:
    """Scores (N,) by reward of the iteration's images, of which a rank has its own, and the groups' diversity.

    Diversity is the root mean square difference of two images of one group, in [0, 1].
    """
    group_size = run.settings.grpo.group_size
    own = score_all(run.rewards, images, [prompt for prompt in prompts for _ in range(group_size)], run.sizes.score)
    # Over pairs the mean squared difference is twice the unbiased variance.
    grouped = images.reshape(len(prompts), group_size, -1).astype(np.float32) / 255
    variance = grouped.var(axis=1, ddof=1).mean() * (len(prompts) / groups.total)
    heard = run.ranks.gather((own.values, own.messages, variance))
    for text in (message for _, messages, _ in heard for message in messages):
        warn(run, run.step + 1, text)
    scores = {name: np.concatenate([values[name] for values, _, _ in heard]) for name in own.values}
    return scores, float(np.sqrt(2 * sum(variance for _, _, variance in heard)))


def update(run: Run, batch: Batch) -> UpdateStats:
    """Split the images into balanced updates, and take one optimiser step on each."""
    settings, grpo = run.settings, run.settings.grpo
    run.optimiser.param_groups[0]["lr"] = learning_rate_at(settings.optimiser, run.step, settings.iterations)
    selected = best_and_worst(batch.advantages.view(-1, grpo.group_size), grpo.best_and_worst)
    objective = make_objective(run, batch, selected)
    # Where nothing but the advantage has a gradient, an image without one has none.
    skips = settings.method == "grpo" and grpo.kl_weight == 0
    splits = balanced_splits(
        batch.advantages[selected], grpo.updates_per_iteration, derived_generator(settings.seed, "updates", run.step)
    )
    taken: list[tuple[float, float, float]] = []  # loss, gradient norm and clipped share of each optimiser step
    drift, num_trained = 0.0, 0
    for split in splits:
        images = selected[split]
        trained = images[batch.advantages[images] != 0] if skips else images
        if len(trained) == 0:
            continue
        own = batch.share.own(trained)
        terms = accumulate(run, objective, own, len(images))
        norm = clip_gradient(run)
        if _is_left_out(run, terms.loss, norm, is_first=not taken):
            run.optimiser.zero_grad(set_to_none=True)
            continue
        run.optimiser.step()
        run.optimiser.zero_grad(set_to_none=True)
        if run.average is not None:
            run.average.update(run.trainable.parameters)
        drift = drift if taken else terms.drift
        taken.append((terms.loss, norm, terms.clipped_share))
        num_trained += int(objective.trained[:, own].sum())
    loss, grad_norm, clipped_share = np.mean(taken, axis=0).tolist() if taken else (0.0, 0.0, 0.0)
    return UpdateStats(loss, grad_norm, drift, clipped_share, sum(run.ranks.gather(num_trained)))


def _is_left_out(run: Run, loss: float, grad_norm: float, *, is_first: bool) -> bool:
    """Whether an update is skipped; says so. Raises ValueError, without it, where the run is to stop for it."""
    action, finite = run.settings.guards.action, math.isfinite(loss) and math.isfinite(grad_norm)
    wrong = run.guards.explodes(loss, grad_norm)
    if not wrong:
        return False
    if action == "stop" or (action == "report" and not finite):
        if is_first:  # else the weights are within an iteration, where none can go on
            save(run)
        raise ValueError(f"Stopped in iteration {run.step + 1}. {wrong}")
    skipped = "This update is skipped. " if action == "skip" else ""
    warn(run, run.step + 1, f"Iteration {run.step + 1}: {skipped}{wrong}")
    return action == "skip"


def _alarm(run: Run, sentences: list[str]) -> list[str]:
    """Tell what the guards found, and return it."""
    for sentence in sentences:
        warn(run, run.step, f"After iteration {run.step}: {sentence}")
    return sentences


def make_objective(run: Run, batch: Batch, selected: Tensor) -> Objective:
    """What the iteration's updates minimise on the `selected` images (M,) long, places among all N."""
    settings, drawn, share = run.settings, batch.rollout, batch.share
    generator = derived_generator(settings.seed, "trained_steps", run.step)
    num_chosen = num_trained_steps(settings)
    advantages = batch.advantages[share.rows].to(run.device, drawn.latents.dtype)
    if settings.method == "grpo":
        velocity, base = _image_velocities(run, batch, settings.sampling.guidance_scale)
        trained = choose_steps(settings.window.size, share.total, num_chosen, generator)[:, share.rows]
        return GrpoObjective(trained, velocity, base, run.kernel, drawn, advantages, settings.grpo)
    # Guidance, where the images were drawn with it, is learnt: the model is trained without (2509.16117).
    velocity, base = _image_velocities(run, batch, 1.0)
    sigmas = drawn.plan.sigmas[:-1]
    trained = choose_steps(len(sigmas), share.total, num_chosen, generator)[:, share.rows]
    noise = derived_generator(settings.seed, "forward_noise", run.step)
    with sampling_policy(run):
        in_batches = MicroBatches(velocity, run.sizes.sample, run.ranks)
        own = share.own(selected)
        noised = noise_images(drawn.latents, sigmas, trained, in_batches, noise, share=share, selected=own)
    return NftObjective(trained, velocity, base, noised, advantages, settings.grpo.advantage_clip, settings.nft)


def _image_velocities(run: Run, batch: Batch, guidance_scale: float) -> tuple[ImageVelocity, ImageVelocity]:
    """The velocity of the policy in training and, without gradient, of the base model, for images by their index."""
    of_prompts = prompt_velocity(run.model, batch.embeddings, guidance_scale, run.settings.model.precision)
    group_size = run.settings.grpo.group_size

    def velocity(latents: Tensor, sigma: float, images: Tensor) -> Tensor:
        return of_prompts(latents, sigma, images // group_size)

    @torch.no_grad()
    def base_velocity(latents: Tensor, sigma: float, images: Tensor) -> Tensor:
        with run.trainable.left_out():
            return velocity(latents, sigma, images)

    return velocity, base_velocity


def _initial_noise(run: Run, iteration: int, groups: Share) -> Tensor:
    """The noise that a share of the groups starts from: a row a group, or a row an image."""
    share = groups if run.settings.sampling.shared_noise else groups.times(run.settings.grpo.group_size)
    return run.model.noise(derived_generator(run.settings.seed, "initial_noise", iteration), share.total)[share.rows]


def _plan(run: Run, iteration: int) -> Plan:
    settings = run.settings
    model_sigmas = run.model.sigmas(settings.sampling.num_steps) if settings.sampling.shift == "model" else None
    if settings.method == "nft":
        return make_plan(settings.sampling, settings.flash, 0, 0, model_sigmas)
    start = window_start(settings.window, settings.sampling.num_steps, settings.seed, iteration)
    return make_plan(settings.sampling, settings.flash, start, settings.window.size, model_sigmas)


@torch.no_grad()
def _evaluate(run: Run) -> list[str]:
    """Draw and score the held-out prompts, and tell of it; returns what the guards found."""
    settings = run.settings

    def velocity_of(prompts: Sequence[str], guidance_scale: float) -> Velocity:
        return prompt_velocity(run.model, run.encode(prompts), guidance_scale, settings.model.precision)

    with run.trainable.replaced_by(run.average.average) if run.average else nullcontext():
        drawn = evaluate(
            run.model, velocity_of, run.rewards, run.prompts.held_out, settings.evaluation,
            step=run.step, out=run.out, sizes=run.sizes, ranks=run.ranks,
        )  # fmt: skip
    run.emit(drawn)
    return _alarm(run, run.guards.after_evaluation(drawn.rewards))


def _started(run: Run) -> Started:
    count = f"{run.ranks.world_size} × " if run.ranks.world_size > 1 else ""
    return Started(
        time=time.time(), step=run.step, iterations=run.settings.iterations, device=count + device_name(run.device),
        versions=versions(), base=base_in_words(run.settings.model) if run.ranks.is_main else "",
    )  # fmt: skip


def _finish(run: Run, outcome: Any) -> Finished:
    finished = Finished(time=time.time(), step=run.step, outcome=outcome)
    run.emit(finished)
    return finished
