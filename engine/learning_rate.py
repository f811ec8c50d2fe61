"""The learning rate over a run, as a function of the iteration alone: a resumed run needs nothing but its step."""

from __future__ import annotations

import math

from engine.settings import OptimiserSettings


def learning_rate_at(options: OptimiserSettings, iteration: int, num_iterations: int) -> float:
    """The rate of the optimiser's updates in an iteration, 0 ≤ iteration < num_iterations.

    It stays at `learning_rate` for the share `decay_start` of the iterations and then falls, in a straight line or
    along half a cosine, to reach 0 just after the last one.
    """
    start = options.decay_start * num_iterations
    if options.schedule == "constant" or iteration <= start:
        return options.learning_rate
    done = (iteration - start) / (num_iterations - start)
    share = 1 - done if options.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return options.learning_rate * share
