"""The clipped policy-gradient objective (GRPO; MixGRPO, arXiv 2507.21802) and the KL term to the base model.

No deviation from the published objective; the sampling policy's drift is reported by the k3 estimator beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GrpoTerms:
    """One step's objective and what to watch of it.

    loss: 0-dim, to minimise. The rest carry no gradient: ratio ρ (B,); clipped_share, 0-dim, of samples with |ρ−1| > ε;
    kl, 0-dim, the estimate mean(ρ − 1 − log ρ) of how far the policy has moved from the one that sampled.
    """

    loss: Tensor
    ratio: Tensor
    clipped_share: Tensor
    kl: Tensor


def grpo_loss(log_prob_new: Tensor, log_prob_old: Tensor, advantages: Tensor, clip_range: float) -> GrpoTerms:
    """mean(max(−A·ρ, −A·clip(ρ, 1−ε, 1+ε))), ρ = exp(log_prob_new − log_prob_old), of a batch (B,)."""
    log_ratio = log_prob_new - log_prob_old
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    with torch.no_grad():
        clipped_share = ((ratio - 1.0).abs() > clip_range).to(ratio.dtype).mean()
        # ρ−1 as expm1: near ρ = 1 the plain difference is all rounding.
        kl = (log_ratio.expm1() - log_ratio).mean()
    return GrpoTerms(loss, ratio.detach(), clipped_share, kl)


def kl_to_base(mean: Tensor, base_mean: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians with one `std` (0-dim), averaged over all dimensions: mean(Δμ²)/(2·std²), 0-dim."""
    return (mean - base_mean).square().mean() / (2.0 * std.square())
