"""Fixed-seed samples of held-out prompts: what the gallery shows.

Drawn as the model's plain diffusers pipeline draws them (its own σ grid, Euler steps, noise from one CPU generator an
image), so that anyone can repeat a tile with the exported weights, its prompt and its seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.batching import BatchSize, BatchSizes, decode
from engine.events import SampleImage, SamplesDrawn
from engine.models import TextToImage
from engine.ranks import ALONE, Ranks
from engine.rewards import Reward, score_all
from engine.sampling.rollout import Velocity, sample_ode
from engine.settings import EvaluationSettings

VelocityOf = Callable[[Sequence[str], float], Velocity]
Sample = Callable[[Velocity, Tensor, Tensor, Sequence[float], int | BatchSize], Tensor]
"""(velocity, noise (B, …), prompt index (B,), σ grid (T+1,), micro-batch) → final latents (B, …)."""


def draw(
    model: TextToImage,
    velocity_of: VelocityOf,
    prompts: Sequence[str],
    evaluation: EvaluationSettings,
    sizes: BatchSizes,
    *,
    sample: Sample = sample_ode,
) -> np.ndarray:
    """uint8 images (N, H, W, 3); image i follows prompt i from seed `evaluation.seed` + i."""
    noise = torch.cat([model.noise(torch.Generator().manual_seed(evaluation.seed + i), 1) for i in range(len(prompts))])
    rows = torch.arange(len(prompts))
    sigmas = tuple(model.sigmas(evaluation.num_steps).tolist())
    velocity = velocity_of(prompts, evaluation.guidance_scale)
    return decode(model, sample(velocity, noise, rows, sigmas, sizes.sample), sizes.decode)


def save_images(images: np.ndarray, folder: Path, first: int = 0) -> list[Path]:
    """Write NNN.png files, numbered from `first`; a reader never sees a half-written one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03d}.png" for index in range(first, first + len(images))]
    for image, path in zip(images, paths, strict=True):
        temporary = path.with_suffix(".tmp")
        Image.fromarray(image).save(temporary, format="PNG")
        temporary.replace(path)
    return paths


def evaluate(
    model: TextToImage,
    velocity_of: VelocityOf,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    evaluation: EvaluationSettings,
    *,
    step: int,
    out: Path,
    sizes: BatchSizes,
    ranks: Ranks = ALONE,
) -> SamplesDrawn:
    """Draw the held-out prompts, on all ranks; save and score them, on the main one."""
    begun = time.perf_counter()
    images = _draw_together(model, velocity_of, prompts, evaluation, sizes, ranks=ranks)
    return ranks.from_main(
        lambda: _save_and_score(images, rewards, prompts, evaluation, sizes.score, step=step, out=out, begun=begun)
    )


def _draw_together(
    model: TextToImage,
    velocity_of: VelocityOf,
    prompts: Sequence[str],
    evaluation: EvaluationSettings,
    sizes: BatchSizes,
    *,
    ranks: Ranks,
) -> np.ndarray:
    """All images, as `draw` gives them, of which each rank draws equally many: some are drawn twice if need be."""
    count = -(-len(prompts) // ranks.world_size)
    first = min(ranks.rank * count, len(prompts) - count)
    own = evaluation.model_copy(update={"seed": evaluation.seed + first})
    drawn = draw(model, velocity_of, prompts[first : first + count], own, sizes)
    images = np.empty((len(prompts), *drawn.shape[1:]), drawn.dtype)
    for start, part in ranks.gather((first, drawn)):
        images[start : start + count] = part
    return images


def _save_and_score(
    images: np.ndarray,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    evaluation: EvaluationSettings,
    score_size: BatchSize,
    *,
    step: int,
    out: Path,
    begun: float,
) -> SamplesDrawn:
    scored = score_all(rewards, images, prompts, score_size)
    paths = save_images(images, out / "samples" / f"step-{step:06d}")
    samples = tuple(
        SampleImage(
            index=i,
            prompt=prompt,
            seed=evaluation.seed + i,
            path=path.relative_to(out).as_posix(),
            rewards={name: float(values[i]) for name, values in scored.values.items() if np.isfinite(values[i])},
        )
        for i, (prompt, path) in enumerate(zip(prompts, paths, strict=True))
    )
    return SamplesDrawn(
        time=time.time(),
        step=step,
        images=samples,
        rewards=_means(scored.values),
        metrics=_means(scored.extras),
        seconds=time.perf_counter() - begun,
    )


def _means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each column over its finite values; a column without any is left out."""
    finite = {name: values[np.isfinite(values)] for name, values in columns.items()}
    return {name: float(values.mean()) for name, values in finite.items() if len(values)}
