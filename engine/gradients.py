"""The gradient of one update: added up over micro-batches and ranks, begun again where memory runs out, and clipped."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.batching import attempt
from engine.objective.base import Objective
from engine.run import Run
from engine.sharding import whole
from engine.work import num_trained_steps


def accumulate(run: Run, objective: Objective, own: Tensor, num_images: int) -> tuple[float, float, float]:
    """Add the gradient of the loss over a rank's own images and their trained steps, a mean over `num_images` of all.

    Returns the loss, the clipped share, and the largest drift, all of all ranks.
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
    return sum(losses), sum(clipped_shares), max(drifts)


def _add_gradients(run: Run, objective: Objective, own: Tensor, num_images: int) -> Tensor:
    """The backward passes of one update; (M, 3) on the CPU: share of the loss, of the clipped share, and drift of each.

    They are read once, at the end: until then nothing waits for the device.
    """
    num_steps = num_trained_steps(run.settings)
    totals: list[Tensor] = []
    for step, trained in enumerate(objective.trained):
        here = own[trained[own]]
        parts = here.split(run.sizes.train.limit) if len(here) else ()
        for _ in range(run.ranks.busiest(len(parts)) - len(parts)):
            _keep_in_step(objective, step, run.device)
        for part in parts:
            terms = objective.terms(step, part.to(run.device))
            share = len(part) / (num_images * num_steps)
            (terms.loss * share).backward()
            totals.append(torch.stack([terms.loss.detach() * share, terms.clipped_share * share, terms.drift]))
    return torch.stack(totals).cpu() if totals else torch.zeros(1, 3)


def _keep_in_step(objective: Objective, step: int, device: torch.device) -> None:
    """Run the model for nothing, as another rank needs this one's part of the weights."""
    first_image = torch.zeros(1, dtype=torch.long, device=device)
    (objective.terms(step, first_image).loss * 0.0).backward()


def clip_gradient(run: Run) -> float:
    """Add up the gradients of all ranks and clip the sum; its norm before that."""
    parameters = run.trainable.parameters.values()
    run.ranks.add_up_gradients(parameters)
    return float(whole(torch.nn.utils.clip_grad_norm_(parameters, run.settings.optimiser.max_grad_norm)))
