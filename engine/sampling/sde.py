"""Transition kernels: a stochastic step as a Gaussian's (mean, std); one draw and one log-probability for all of them.

Sources: Flow-GRPO (arXiv 2505.05470), MixGRPO (2507.21802), DanceGRPO (2505.07818), coefficients-preserving sampling
(CPS, 2509.05952). Deviations from the published code: DanceGRPO's log-probability keeps its constant terms, which a
line break drops there; arithmetic is float32 at least, whatever the model's precision, and float64 for
log-probabilities; σ is used as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.settings import KernelName

# A grid that passed through float32 may start this far below 1.
_ONE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Transition:
    """One step's Gaussian: `mean` (B, …), `std` 0-dim, both float32 at least.

    `normalised` false marks a kernel whose log-probability is −(x'−mean)², without scale or constant (CPS).
    """

    mean: Tensor
    std: Tensor
    normalised: bool = True


class Kernel(Protocol):
    """A way to take one stochastic step."""

    def transition(
        self, latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float, sigma_first: float
    ) -> Transition:
        """The Gaussian of the latents (B, …) at `sigma_next`, given those at `sigma` and their velocity."""
        ...


@dataclass(frozen=True)
class FlowSde:
    """Flow-GRPO's SDE (2505.05470), with the ODE's marginals: noise s = η·√(σ/(1−σ)).

    The mean is x·(1 + s²/(2σ)·dt) + v·(1 + s²(1−σ)/(2σ))·dt, the std s·√(−dt).
    """

    eta: float

    def transition(
        self, latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float, sigma_first: float
    ) -> Transition:
        """The Gaussian at `sigma_next`; `sigma_first` (σ₁ of the grid) replaces σ in the denominator at σ = 1."""
        latents, velocity = _precise(latents), _precise(velocity)
        dt = sigma_next - sigma
        at_start = math.isclose(sigma, 1.0, rel_tol=0.0, abs_tol=_ONE_TOLERANCE)
        scale = self.eta * math.sqrt(sigma / (1.0 - (sigma_first if at_start else sigma)))
        drift = scale**2 / (2.0 * sigma)
        mean = latents * (1.0 + drift * dt) + velocity * ((1.0 + drift * (1.0 - sigma)) * dt)
        return Transition(mean, _scalar(scale * math.sqrt(-dt), mean))


@dataclass(frozen=True)
class DanceSde:
    """DanceGRPO's SDE (2505.07818) with constant noise η: mean x + v·dt − ½η²·score·dt, std η·√(−dt)."""

    eta: float

    def transition(
        self, latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float, sigma_first: float
    ) -> Transition:
        """The Gaussian at `sigma_next`; `sigma_first` is not used."""
        latents, velocity = _precise(latents), _precise(velocity)
        dt = sigma_next - sigma
        score = -(latents - (1.0 - sigma) * clean_prediction(latents, velocity, sigma)) / sigma**2
        mean = latents + velocity * dt - (0.5 * self.eta**2 * dt) * score
        return Transition(mean, _scalar(self.eta * math.sqrt(-dt), mean))


@dataclass(frozen=True)
class Cps:
    """Coefficients-preserving sampling (2509.05952): new noise takes the place of predicted noise, so σ is kept.

    With s = σ'·sin(ηπ/2) the mean is (1−σ')·x̂0 + √(σ'²−s²)·x̂1, x̂1 = x + (1−σ)·v, and the std s.
    """

    eta: float

    def transition(
        self, latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float, sigma_first: float
    ) -> Transition:
        """The Gaussian at `sigma_next`, whose log-probability has no normaliser; `sigma_first` is not used."""
        latents, velocity = _precise(latents), _precise(velocity)
        std = sigma_next * math.sin(0.5 * math.pi * self.eta)
        # At η = 1 the difference of squares may round below zero.
        kept = math.sqrt(max(0.0, sigma_next**2 - std**2))
        noise_prediction = latents + (1.0 - sigma) * velocity
        mean = (1.0 - sigma_next) * clean_prediction(latents, velocity, sigma) + kept * noise_prediction
        return Transition(mean, _scalar(std, mean), normalised=False)


KERNELS: dict[KernelName, Callable[[float], Kernel]] = {"flow_sde": FlowSde, "dance_sde": DanceSde, "cps": Cps}


def make_kernel(name: KernelName, eta: float) -> Kernel:
    """The kernel of that name with noise level η."""
    return KERNELS[name](eta)


def ode_step(latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Euler's step x + v·dt of the flow, (B, …), float32 at least."""
    return _precise(latents) + _precise(velocity) * (sigma_next - sigma)


def clean_prediction(latents: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """The image the model expects, x̂0 = x − σ·v, (B, …), float32 at least."""
    return _precise(latents) - sigma * _precise(velocity)


def draw(transition: Transition, noise: Tensor) -> Tensor:
    """The next latents, mean + std·noise, (B, …); `noise` is standard normal."""
    return transition.mean + transition.std * noise.to(transition.mean.dtype)


def log_prob(transition: Transition, next_latents: Tensor) -> Tensor:
    """The log-probability of `next_latents` (B, …), averaged over all but the batch: (B,), float64.

    Where the noise is small it is a large number, and a float32 of its size is too coarse for a ratio of two.
    """
    squared_error = batch_mean((_precise(next_latents) - transition.mean).square())
    if not transition.normalised:
        return -squared_error
    std = transition.std.double()
    return -squared_error / (2.0 * std.square()) - std.log() - 0.5 * math.log(2.0 * math.pi)


def batch_mean(values: Tensor) -> Tensor:
    """The mean over all but the batch dimension, (B, …) to (B,), added up in float64."""
    return values.flatten(1).mean(1, dtype=torch.float64)


def _precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _scalar(value: float, like: Tensor) -> Tensor:
    # `full` fills on the device: no copy from the host, no synchronisation.
    return torch.full((), value, dtype=like.dtype, device=like.device)
