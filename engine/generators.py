"""Torch generators of a run's derived seeds."""

from __future__ import annotations

import torch

from engine.seeds import Purpose, derived_seed


def derived_generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """A CPU generator seeded with `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, index))
