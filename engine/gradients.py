"""The gradient of one update: added up over micro-batches and ranks, begun again where memory runs out, and clipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.batching import attempt
from engine.objective.base import Objective
from engine.run import Run
from engine.sharding import whole
from engine.work import num_trained_steps


@dataclass(frozen=True)
class UpdateTerms:
    """An update's loss and what to watch of it, as `StepTerms` has them: of all its images, steps and ranks."""

    loss: float
    clipped_share: float
    drift: float


def accumulate(run: Run, objective: Objective, own: Tensor, num_images: int) -> UpdateTerms:
    """Add the gradient of the loss at a rank's own images (B,) and their trained steps to the weights' `grad`.

    The loss is a mean over `num_images`: those of every rank, and those that have no gradient and are left out.
    """
    counted = run.counter.count
    while (added := attempt(lambda: _add_gradients(run, objective, own, num_images))) is None:
        # Half of a backward pass may have been added: the update begins again.
        run.sizes.train.halve(min(run.sizes.train.limit, len(own)))
        run.optimiser.zero_grad(set_to_none=True)
        run.counter.count = counted
    figures = added[0]
    heard = run.ranks.gather((float(figures[:, 0].sum()), float(figures[:, 1].sum()), float(figures[:, 2].max())))
    losses, clipped_shares, drifts = zip(*heard, strict=True)
    return UpdateTerms(sum(losses), sum(clipped_shares), max(drifts))


def _add_gradients(run: Run, objective: Objective, own: Tensor, num_images: int) -> Tensor:
    """The backward passes of one update; (M, 3) on the CPU: what each adds to loss and clipped share; its drift.

    They are read once, at the end: until then nothing waits for the device.
    """
    num_steps = num_trained_steps(run.settings)
    totals: list[Tensor] = []
    for step, trained in enumerate(objective.trained):
        here = own[trained[own]]
        parts = here.split(run.sizes.train.limit) if len(here) else ()
        for _ in range(run.ranks.busiest(len(parts)) - len(parts)):
            _keep_in_step(objective, step)
        for part in parts:
            terms = objective.terms(step, part)
            weight = len(part) / (num_images * num_steps)
            (terms.loss * weight).backward()
            totals.append(torch.stack([terms.loss.detach() * weight, terms.clipped_share * weight, terms.drift]))
    return torch.stack(totals).cpu() if totals else torch.zeros(1, 3)


def _keep_in_step(objective: Objective, step: int) -> None:
    """Run the model for nothing, as another rank needs this one's part of the weights."""
    first_image = torch.zeros(1, dtype=torch.long)
    (objective.terms(step, first_image).loss * 0.0).backward()


def clip_gradient(run: Run) -> float:
    """Add up the gradients of all ranks and clip the sum; its norm before that."""
    parameters = run.trainable.parameters.values()
    run.ranks.add_up_gradients(parameters)
    return float(whole(torch.nn.utils.clip_grad_norm_(parameters, run.settings.optimiser.max_grad_norm)))
