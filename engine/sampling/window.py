"""Which steps are stochastic and trained (MixGRPO, arXiv 2507.21802): l … l+W−1, by iteration.

Pure functions of the iteration, free of torch, so a resumed run continues where it was and the workbench can tell the
work ahead. Deviations from the published code: every window is full (there a moving one shrinks to 3, 2, 1, then 0
steps before it wraps); the random strategy draws from a generator of its own for each iteration; for methods without a
window, it may have every step but the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from engine.seeds import derived_seed
from engine.settings import WindowSettings, last_position_of

# The published constants of exp-decay: past this position, each gets e^−0.1 of the iterations of the one before.
_EXP_DECAY_THRESHOLD = 13
_EXP_DECAY_RATE = 0.1


def last_position(window: WindowSettings, num_steps: int) -> int:
    """The last position l the window may take: `window.last`, or the largest; ValueError if no full window fits."""
    limit = last_position_of(window.size, num_steps)
    last = limit if window.last is None else window.last
    if window.size >= num_steps or not 0 <= window.start <= last <= limit:
        raise ValueError(
            f"A window of {window.size} steps from position {window.start} to {last} does not fit {num_steps} sampling "
            f"steps, whose last is never stochastic; positions may be 0 to {limit}."
        )
    return last


def window_start(window: WindowSettings, num_steps: int, seed: int, iteration: int) -> int:
    """The window's first step l in `iteration` (counted from 0); the steps l … l+W−1 are stochastic.

    Raises ValueError if no full window fits.
    """
    last = last_position(window, num_steps)
    if window.strategy == "frozen":
        return window.start
    if window.strategy == "random":
        generator = np.random.default_rng(derived_seed(seed, "window", iteration))
        return int(generator.integers(window.start, last + 1))
    return _cycle(range(window.start, last + 1, window.stride), _iterations_at(window, num_steps), iteration)


def position_shares(window: WindowSettings, num_steps: int) -> dict[int, float]:
    """The share of a long run's iterations that the window spends at each position; shares sum to 1."""
    last = last_position(window, num_steps)
    if window.strategy == "frozen":
        return {window.start: 1.0}
    if window.strategy == "random":
        count = last + 1 - window.start
        return dict.fromkeys(range(window.start, last + 1), 1.0 / count)
    iterations_at = _iterations_at(window, num_steps)
    spent = {position: iterations_at(position) for position in range(window.start, last + 1, window.stride)}
    return {position: iterations / sum(spent.values()) for position, iterations in spent.items()}


def _iterations_at(window: WindowSettings, num_steps: int) -> Callable[[int], int]:
    """How many iterations a moving window spends at position l."""
    most, fewest = window.iterations_per_position, window.min_iterations_per_position

    def decay(position: int) -> int:
        progress = position / max(1, num_steps - 2)
        return max(fewest, int(most * (1.0 - progress) + fewest * progress))

    def exp_decay(position: int) -> int:
        return math.ceil(most * math.exp(-_EXP_DECAY_RATE * max(0, position - _EXP_DECAY_THRESHOLD)))

    if window.strategy == "decay":
        return decay
    if window.strategy == "exp_decay":
        return exp_decay
    return lambda position: most


def _cycle(positions: range, iterations_at: Callable[[int], int], iteration: int) -> int:
    """The position at `iteration` of an endless walk over `positions` that wraps to the first past the last."""
    left = iteration % sum(iterations_at(position) for position in positions)
    for position in positions:
        left -= iterations_at(position)
        if left < 0:
            return position
    raise AssertionError("the walk ends within one cycle")
