"""The clipped policy-gradient objective (GRPO; MixGRPO, arXiv 2507.21802), the KL term and GRPO-Guard.

No deviation from the published objective. GRPO-Guard's normalised log-ratio (2510.22319) is written as mean(ε·Δμ), what
its terms add up to: no difference of large numbers, and one form for every kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.objective.base import ImageVelocity, StepTerms
from engine.sampling.rollout import Rollout
from engine.sampling.sde import Kernel, Transition, batch_mean, log_prob
from engine.settings import GrpoSettings
from engine.transfer import to_device


@dataclass(frozen=True)
class GrpoTerms:
    """One step's objective and what to watch of it.

    loss: 0-dim, to minimise. The rest carry no gradient: ratio ρ (B,); clipped_share, 0-dim, of samples with |ρ−1| > ε.
    """

    loss: Tensor
    ratio: Tensor
    clipped_share: Tensor


def grpo_loss(log_prob_new: Tensor, log_prob_old: Tensor, advantages: Tensor, clip_range: float) -> GrpoTerms:
    """mean(max(−A·ρ, −A·clip(ρ, 1−ε, 1+ε))), ρ = exp(log_prob_new − log_prob_old), of a batch (B,)."""
    ratio = (log_prob_new - log_prob_old).exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    with torch.no_grad():
        clipped_share = ((ratio - 1.0).abs() > clip_range).to(ratio.dtype).mean()
    return GrpoTerms(loss, ratio.detach(), clipped_share)


def kl_to_base(mean: Tensor, base_mean: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians with one `std` (0-dim), averaged over all dimensions: mean(Δμ²)/(2·std²), 0-dim."""
    return (mean - base_mean).square().mean() / (2.0 * std.square())


def normalised_log_ratio(transition: Transition, sampled_mean: Tensor, next_latents: Tensor) -> Tensor:
    """GRPO-Guard's log-ratio (B,): std·(log ρ + mean(Δμ²)/(2·std²)) = mean(ε·Δμ) (2510.22319).

    Its mean is 0 and its size the same at every step. `sampled_mean` and `next_latents` (B, …) are of the rollout.
    """
    noise = (next_latents - sampled_mean) / transition.std
    return batch_mean(noise * (transition.mean - sampled_mean))


@dataclass(frozen=True)
class GrpoObjective:
    """GRPO on the window's stochastic steps.

    Attributes:
        trained: (W, N) bool.
        velocity: of the policy in training.
        base_velocity: of the base model, without gradient; used where the settings have a KL weight.
        advantages: (N,), on the rollout's device.
    """

    trained: Tensor
    velocity: ImageVelocity
    base_velocity: ImageVelocity
    kernel: Kernel
    rollout: Rollout
    advantages: Tensor
    settings: GrpoSettings

    def terms(self, step: int, images: Tensor) -> StepTerms:
        """The clipped objective at a step of the window, with the KL term."""
        settings = self.settings
        sigma, sigma_next = self.rollout.plan.window_steps[step]
        place = to_device(images, self.rollout.states.device)
        latents, following = self.rollout.states[step, place], self.rollout.states[step + 1, place]
        # The base first: leaving a full fine-tune's weights out changes them in place; a pending backward forbids it.
        base_velocity = self.base_velocity(latents, sigma, images) if settings.kl_weight else None
        transition = self._transition(latents, self.velocity(latents, sigma, images), step)
        if settings.ratio_normalisation:
            new = normalised_log_ratio(transition, self.rollout.means[step, place], following)
            old = torch.zeros_like(new)
        else:
            new, old = log_prob(transition, following), self.rollout.log_probs[step, place]
        grpo = grpo_loss(new, old, self.advantages[place], settings.clip_range)
        # GRPO-Guard: the normalised gradient shrinks with the step; 1/|dt| puts every step on a par.
        loss = grpo.loss / (sigma - sigma_next) if settings.ratio_normalisation else grpo.loss
        if base_velocity is not None:
            base = self._transition(latents, base_velocity, step)
            loss = loss + settings.kl_weight * kl_to_base(transition.mean, base.mean, transition.std)
        return StepTerms(loss, (grpo.ratio - 1).abs().max(), grpo.clipped_share)

    def _transition(self, latents: Tensor, velocity: Tensor, step: int) -> Transition:
        plan = self.rollout.plan
        return self.kernel.transition(latents, velocity, *plan.window_steps[step], plan.sigma_first)
