"""Every random draw of a run, as a function of the run's seed and what it is for.

Nothing carries a generator from one iteration to the next, so a resumed run needs no random state to be the same run.
Free of torch; engine/generators.py makes torch generators of these seeds.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Purpose = Literal[
    "initial_noise", "step_noise", "updates", "prompt_order", "adapter", "window", "trained_steps", "forward_noise"
]
_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def derived_seed(seed: int, purpose: Purpose, index: int = 0) -> int:
    """A 63-bit seed for one purpose at one index (an iteration, an epoch)."""
    sequence = np.random.SeedSequence([seed, _PURPOSES.index(purpose), index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
