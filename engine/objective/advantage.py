"""Group advantages (GRPO; MixGRPO, arXiv 2507.21802): how much better than its siblings each image is.

Deviations from the published code: an image for which a weighted reward failed leaves its group's statistics and
gets advantage 0 (there a failure scores 0.0 and is learnt from); a group whose scores are equal within float noise
has advantage 0 (there the noise is blown up to ±1); weights are normalised to sum 1; every prompt is handled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

_EPSILON = 1e-8
# A few units in the last place of float32: scores that differ by less, relative to their size, are one score.
_FLOAT_NOISE = 1e-6


def group_advantages(
    scores: Mapping[str, Tensor],
    weights: Mapping[str, float],
    mix: Literal["advantage", "reward"],
    clip: float,
) -> Tensor:
    """Advantages (P, G), clipped to ±`clip`, of scores (P, G) by reward name; NaN or ±inf marks a score that failed.

    (r − mean)/(std + 1e-8) over each group, unbiased std. Mix "advantage" standardises each reward, then sums them by
    weight; "reward" sums first. An image with a failed score of a weighted reward, or alone in its group, gets 0.
    Raises ValueError if no weight is above 0, or a weighted reward has no scores.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        raise ValueError("All reward weights are zero, so there is nothing to learn; give one a weight above 0.")
    missing = sorted(used.keys() - scores.keys())
    if missing:
        raise ValueError(f"There are no scores of {', '.join(missing)}, though the run is trained on them.")
    dtype = torch.promote_types(next(iter(scores.values())).dtype, torch.float32)
    rewards = torch.stack([scores[name].double() for name in used])
    shares = rewards.new_tensor(list(used.values())) / sum(used.values())
    valid = rewards.isfinite().all(dim=0)
    weighted = shares[:, None, None] * rewards.masked_fill(~valid, 0.0)
    size = weighted.abs()
    if mix == "reward":
        mixed = _standardised(weighted.sum(0), size.sum(0), valid)
    else:
        # Standardised before the weight: a tiny weight must not meet the 1e-8 under the fraction.
        parts = rewards.masked_fill(~valid, 0.0)
        mixed = (shares[:, None, None] * _standardised(parts, parts.abs(), valid)).sum(0)
    return mixed.clamp(-clip, clip).to(dtype)


def balanced_splits(advantages: Tensor, num_updates: int, generator: torch.Generator) -> list[Tensor]:
    """Indices (long) of the samples (N,) for each update: every sample once, positive and negative spread evenly.

    Numbers of positive, of negative, and of all samples differ by at most one between updates.
    Raises ValueError if there are fewer samples than updates.
    """
    num_samples = len(advantages)
    if not 1 <= num_updates <= num_samples:
        raise ValueError(f"{num_samples} samples cannot be split into {num_updates} updates.")
    shuffled = torch.randperm(num_samples, generator=generator, device=generator.device).to(advantages.device)
    signs = advantages[shuffled].sign()
    # Dealt like cards from a deck of positives, then negatives, then zeros: each kind lands evenly.
    deck = torch.cat([shuffled[signs == sign] for sign in (1, -1, 0)])
    return [deck[first::num_updates] for first in range(num_updates)]


def _standardised(rewards: Tensor, size: Tensor, valid: Tensor) -> Tensor:
    """(r − mean)/(std + 1e-8) over the valid of each group (…, G); 0 where invalid, or all equal within float noise.

    `size` (…, G) is the magnitude of what each reward was summed from: the scale of its rounding.
    """
    count = valid.sum(-1, keepdim=True)
    mean = (rewards * valid).sum(-1, keepdim=True) / count.clamp(min=1)
    deviation = (rewards - mean) * valid
    std = (deviation.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    highest = rewards.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    noise = _FLOAT_NOISE * (size * valid).amax(-1, keepdim=True)
    return torch.where(highest - lowest > noise, deviation / (std + _EPSILON), torch.zeros_like(deviation))
