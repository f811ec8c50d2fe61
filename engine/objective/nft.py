"""DiffusionNFT (arXiv 2509.16117): policy improvement on the forward process, from clean images and their rewards.

An image is noised to x_σ = (1−σ)·x0 + σ·ε. Beside the policy's velocity v stand two implicit ones:
v⁺ = (1−β)·v_old + β·v and v⁻ = (1+β)·v_old − β·v. v⁺ learns to predict good images and v⁻ bad ones, so v moves from bad
to good. Nothing of how an image was drawn is needed: any solver, no likelihoods. As in the published code, the squared
error of x̂0 is divided by its own mean size, and the sum multiplied by the advantages' clip.

Deviation: noise levels are those of the sampling grid with none left out, each image's own choice without repeats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.objective.base import ImageVelocity, StepTerms
from engine.ranks import Share
from engine.sampling.sde import clean_prediction
from engine.settings import NftSettings
from engine.transfer import to_device

_SMALLEST_ERROR = 1e-5


def optimality(advantages: Tensor, clip: float) -> Tensor:
    """How surely each image is a good one, r in [0, 1]: (1 + clip(A/c, −1, 1))/2."""
    return (advantages / clip).clamp(-1.0, 1.0) / 2.0 + 0.5


def nft_loss(  # noqa: PLR0917 - what the formula has
    noisy: Tensor, clean: Tensor, sigma: float, velocity: Tensor, sampler_velocity: Tensor, good: Tensor, beta: float
) -> Tensor:
    """r·L⁺/β + (1−r)·L⁻/β of each image (B,); latents and velocities (B, …), r = `good` (B,)."""
    step = beta * (velocity - sampler_velocity)
    positive = _error(clean_prediction(noisy, sampler_velocity + step, sigma), clean)
    negative = _error(clean_prediction(noisy, sampler_velocity - step, sigma), clean)
    return (good * positive + (1.0 - good) * negative) / beta


def _error(prediction: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error over mean absolute error, the latter without gradient: (B,)."""
    difference = (prediction - clean).flatten(1)
    size = difference.detach().abs().mean(1).clamp(min=_SMALLEST_ERROR)
    return difference.square().mean(1) / size


@dataclass(frozen=True)
class NoisedImages:
    """An iteration's N images at K noise levels each, and the sampling policy's velocity there.

    sigmas: (T,) of the grid, without the last. levels: (K, N) long, places in `sigmas`, on the CPU. noisy, velocity:
    (K, N, …). clean: (N, …).
    """

    sigmas: tuple[float, ...]
    levels: Tensor
    noisy: Tensor
    velocity: Tensor
    clean: Tensor


@torch.no_grad()
def noise_images(
    clean: Tensor,
    sigmas: tuple[float, ...],
    trained: Tensor,
    velocity: ImageVelocity,
    generator: torch.Generator,
    *,
    share: Share | None = None,
    selected: Tensor | None = None,
) -> NoisedImages:
    """The images (N, …) noised to the levels each is trained at, (T, N) bool, with the sampling policy's velocity.

    They may be a `share` of a batch; their noise is then that of their rows of it. The velocity is asked for at every
    level of the grid, for no image where none is trained there; of the `selected` (M,) long alone (None: of all), and
    is 0 elsewhere.
    """
    num_images, device = len(clean), clean.device
    # Each column's chosen places, ascending: equally many in every column.
    levels = trained.t().nonzero()[:, 1].view(num_images, -1).t()
    share = share or Share.whole(num_images)
    noise = share.normal(clean.expand(len(levels), *clean.shape), generator, dim=1)
    sigma = to_device(torch.tensor(sigmas, dtype=clean.dtype)[levels], device)
    sigma = sigma.reshape(*levels.shape, *[1] * (clean.dim() - 1))
    noisy = (1.0 - sigma) * clean + sigma * noise
    velocities = torch.zeros_like(noisy)
    asked = torch.ones(num_images, dtype=torch.bool) if selected is None else _places(selected, num_images)
    for place in range(len(sigmas)):
        draw, images = ((levels == place) & asked).nonzero(as_tuple=True)
        here = to_device(draw, device), to_device(images, device)
        velocities[here] = velocity(noisy[here], sigmas[place], images).to(clean.dtype)
    return NoisedImages(sigmas, levels, noisy, velocities, clean)


def _places(images: Tensor, num_images: int) -> Tensor:
    """(N,) bool, on the CPU: which of N images are named."""
    return torch.zeros(num_images, dtype=torch.bool).index_fill_(0, images.cpu(), value=True)


@dataclass(frozen=True)
class NftObjective:
    """DiffusionNFT at the noise levels of the sampling grid.

    Attributes:
        trained: (T, N) bool.
        velocity: of the policy in training.
        base_velocity: of the base model, without gradient; used where the settings give its term a weight.
        advantages: (N,), clipped to ±`clip`.
    """

    trained: Tensor
    velocity: ImageVelocity
    base_velocity: ImageVelocity
    images: NoisedImages
    advantages: Tensor
    clip: float
    settings: NftSettings

    def terms(self, step: int, images: Tensor) -> StepTerms:
        """The loss at one noise level of the images that are trained there, with the distance to the base model."""
        data, sigma = self.images, self.images.sigmas[step]
        draw = (data.levels[:, images] == step).int().argmax(0)
        place = to_device(images, data.noisy.device)
        here = to_device(draw, data.noisy.device), place
        noisy, sampler_velocity = data.noisy[here], data.velocity[here]
        # The base first: leaving a full fine-tune's weights out changes them in place; a pending backward forbids it.
        base = self.base_velocity(noisy, sigma, images) if self.settings.base_weight else None
        velocity = self.velocity(noisy, sigma, images).to(noisy.dtype)
        good = optimality(self.advantages[place], self.clip)
        each = nft_loss(noisy, data.clean[place], sigma, velocity, sampler_velocity, good, self.settings.beta)
        loss = self.clip * each.mean()
        if base is not None:
            loss = loss + self.settings.base_weight * (velocity - base).square().mean()
        moved = (velocity.detach() - sampler_velocity).flatten(1).norm(dim=1)
        drift = moved / sampler_velocity.flatten(1).norm(dim=1).clamp(min=_SMALLEST_ERROR)
        return StepTerms(loss, drift.max(), torch.zeros((), device=loss.device))
