"""Rewards: what a run is trained towards, one a file.

To add one: a file here with a class that fits `Reward`, a line in `REWARDS`, a name in `RewardName`
(engine/settings/rewards.py) and its facts in `REWARD_INFO` (engine/catalogue/rewards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.rewards.base import Pixels, Reward, ScoredBatch, Scores, score_all
from engine.rewards.composition import Composition
from engine.rewards.compressibility import Compressibility
from engine.rewards.incompressibility import Incompressibility
from engine.rewards.vividness import Vividness
from engine.settings import RewardName

__all__ = ["REWARDS", "Pixels", "Reward", "ScoredBatch", "Scores", "make_rewards", "score_all"]

REWARDS: dict[RewardName, Callable[[], Reward]] = {
    "composition": Composition,
    "vividness": Vividness,
    "compressibility": Compressibility,
    "incompressibility": Incompressibility,
}


def make_rewards(names: Iterable[RewardName]) -> dict[RewardName, Reward]:
    """The named rewards, ready to score."""
    return {name: REWARDS[name]() for name in names}
