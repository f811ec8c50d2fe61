"""Group advantages (GRPO; MixGRPO, arXiv 2507.21802): how much better than its siblings each image is.

Deviations from the published code: an image for which a weighted reward failed leaves its group's statistics and
gets advantage 0 (there a failure scores 0.0 and is learnt from); a group whose scores are equal within float noise
has advantage 0 (there the noise is blown up to ±1); weights are normalised to sum 1; every prompt is handled. Trimmed
statistics leave out as many of the lowest rewards as of the highest, and apply to the mean as well as the std.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from engine.standardised import FLOAT_NOISE

_EPSILON = 1e-8


def group_advantages(
    scores: Mapping[str, Tensor],
    weights: Mapping[str, float],
    mix: Literal["advantage", "reward"],
    clip: float,
    *,
    std: Literal["group", "global"] = "group",
    trim: float = 0.0,
    gates: Mapping[str, float] | None = None,
) -> Tensor:
    """Advantages (P, G), clipped to ±`clip`, of scores (P, G) by reward name; NaN or ±inf marks a score that failed.

    (r − mean)/(std + 1e-8) over each group, unbiased std. Mix "advantage" standardises each reward, then sums them by
    weight; "reward" sums first. The std is the group's own, or "global": that of all groups' rewards together
    (Flow-GRPO, 2505.05470). `trim` leaves that share of a group's valid scores, rounded down, out of its statistics at
    either end; those images keep their advantage, and a group whose other scores are all equal is not trimmed. An
    image with a failed score of a weighted reward or a gate, or alone in its group, gets 0. `gates` are limits by
    reward name: an image that scores below one counts, by every reward, as the lowest of its group.
    Raises ValueError if no weight is above 0, or a weighted reward or a gate has no scores.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        raise ValueError("All reward weights are zero, so there is nothing to learn; give one a weight above 0.")
    gates = gates or {}
    missing = sorted({*used, *gates} - scores.keys())
    if missing:
        raise ValueError(f"There are no scores of {', '.join(missing)}, though the run is trained on them.")
    dtype = torch.promote_types(next(iter(scores.values())).dtype, torch.float32)
    rewards = torch.stack([scores[name].double() for name in used])
    shares = rewards.new_tensor(list(used.values())) / sum(used.values())
    valid = rewards.isfinite().all(dim=0)
    for name in gates:
        valid = valid & scores[name].isfinite()
    for name, limit in gates.items():
        rewards = torch.where(scores[name] < limit, _lowest(rewards, valid), rewards)
    weighted = shares[:, None, None] * rewards.masked_fill(~valid, 0.0)
    size = weighted.abs()
    if mix == "reward":
        mixed = _standardised(weighted.sum(0), size.sum(0), valid, std, trim)
    else:
        # Standardised before the weight: a tiny weight must not meet the 1e-8 under the fraction.
        parts = rewards.masked_fill(~valid, 0.0)
        standardised = [_standardised(part, part.abs(), valid, std, trim) for part in parts]
        mixed = (shares[:, None, None] * torch.stack(standardised)).sum(0)
    return mixed.clamp(-clip, clip).to(dtype)


def group_spreads(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The unbiased std of each reward's scores (P, G) within a group, averaged over the groups, in the scores' units.

    A failed score (NaN or ±inf) is left out, and a group with fewer than two others; a reward without any group is
    absent. Neither trimmed nor gated: what the scores themselves show.
    """
    spreads: dict[str, float] = {}
    for name, grouped in scores.items():
        rewards, counted = grouped.double(), grouped.isfinite()
        told = counted.sum(-1) > 1
        if told.any():
            spreads[name] = float(_std(rewards.masked_fill(~counted, 0.0), counted)[told].mean())
    return spreads


def best_and_worst(advantages: Tensor, count: int) -> Tensor:
    """Indices (long), into (P, G) flattened, of the `count` highest and the `count` lowest advantages of each group.

    Of equal ones the earlier image counts as the higher. Every image, in order, for a count of 0.
    Raises ValueError if 2·count > G.
    """
    num_groups, group_size = advantages.shape
    if count == 0:
        return torch.arange(num_groups * group_size, device=advantages.device)
    if 2 * count > group_size:
        raise ValueError(f"A group of {group_size} images has no {count} best and {count} worst; choose fewer.")
    order = advantages.argsort(dim=1, descending=True, stable=True)
    chosen = torch.cat([order[:, :count], order[:, -count:]], dim=1).sort(dim=1).values
    first = group_size * torch.arange(num_groups, device=advantages.device)
    return (first[:, None] + chosen).flatten()


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


def _standardised(
    rewards: Tensor, size: Tensor, valid: Tensor, std: Literal["group", "global"], trim: float
) -> Tensor:
    """(r − mean)/(std + 1e-8) of the valid of each group (P, G); 0 where invalid, or all equal within float noise.

    `size` (P, G) is the magnitude of what each reward was summed from: the scale of its rounding.
    """
    noise = FLOAT_NOISE * (size * valid).amax(-1, keepdim=True)
    counted = _untrimmed(rewards, valid, trim)
    counted = torch.where(_range(rewards, counted) > noise, counted, valid)
    mean = _mean(rewards, counted)
    spread = _std(rewards.flatten(), counted.flatten()) if std == "global" else _std(rewards, counted)
    deviation = (rewards - mean) * valid
    return torch.where(_range(rewards, valid) > noise, deviation / (spread + _EPSILON), torch.zeros_like(deviation))


def _untrimmed(rewards: Tensor, valid: Tensor, trim: float) -> Tensor:
    """Which of the valid (P, G) are left when ⌊trim·n⌋ of each group's n are dropped at either end."""
    count = valid.sum(-1, keepdim=True)
    dropped = (trim * count).floor()
    rank = rewards.masked_fill(~valid, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    return valid & (rank >= dropped) & (rank < count - dropped)


def _mean(rewards: Tensor, counted: Tensor) -> Tensor:
    """The mean over the last dimension of those that count: (…, 1)."""
    return (rewards * counted).sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp(min=1)


def _std(rewards: Tensor, counted: Tensor) -> Tensor:
    """The unbiased standard deviation over the last dimension of those that count: (…, 1)."""
    squares = ((rewards - _mean(rewards, counted)) * counted).square().sum(-1, keepdim=True)
    return (squares / (counted.sum(-1, keepdim=True) - 1).clamp(min=1)).sqrt()


def _lowest(rewards: Tensor, counted: Tensor) -> Tensor:
    """The lowest over the last dimension of those that count: (…, 1); ∞ where none do."""
    return rewards.masked_fill(~counted, torch.inf).amin(-1, keepdim=True)


def _range(rewards: Tensor, counted: Tensor) -> Tensor:
    """Highest minus lowest over the last dimension of those that count: (…, 1); −∞ where none do."""
    highest = rewards.masked_fill(~counted, -torch.inf).amax(-1, keepdim=True)
    return highest - _lowest(rewards, counted)
