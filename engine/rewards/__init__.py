"""Rewards: what a run is trained towards, one a file.

To add one: a file here with a class that fits `Reward`, a line in `REWARDS`, a name in `RewardName`
(engine/settings/rewards.py) and its facts in `REWARD_INFO` (engine/catalogue/rewards.py). A reward is made from its
settings, for a device; the options it takes are listed in `REWARD_OPTIONS` (engine/settings/rewards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from engine.rewards.aesthetic import Aesthetic
from engine.rewards.base import Pixels, Reward, ScoredBatch, Scores, score_all
from engine.rewards.clip_score import ClipScore
from engine.rewards.composition import Composition
from engine.rewards.compressibility import Compressibility
from engine.rewards.function import UserFunction
from engine.rewards.hpsv2 import Hpsv2
from engine.rewards.image_reward import ImageReward
from engine.rewards.incompressibility import Incompressibility
from engine.rewards.ocr import Ocr
from engine.rewards.pickscore import PickScore
from engine.rewards.safety import Safety
from engine.rewards.served import Served
from engine.rewards.vividness import Vividness
from engine.settings import RewardName, RewardSettings

__all__ = ["REWARDS", "Pixels", "Reward", "ScoredBatch", "Scores", "make_rewards", "score_all"]

MakeReward = Callable[[RewardSettings, torch.device], Reward]

REWARDS: dict[RewardName, MakeReward] = {
    "composition": lambda settings, device: Composition(),
    "vividness": lambda settings, device: Vividness(),
    "compressibility": lambda settings, device: Compressibility(),
    "incompressibility": lambda settings, device: Incompressibility(),
    "ocr": lambda settings, device: Ocr(),
    "safety": lambda settings, device: Safety(),
    "function": lambda settings, device: UserFunction(settings.function or ""),
    "http": Served.http,
    "judge": Served.judge,
    "clip_score": ClipScore.load,
    "hpsv2": Hpsv2.load,
    "pickscore": PickScore.load,
    "image_reward": ImageReward.load,
    "aesthetic": Aesthetic.load,
}


def make_rewards(settings: Iterable[RewardSettings], device: torch.device) -> dict[str, Reward]:
    """The rewards by label or name, ready to score. Raises ValueError with a sentence for what one lacks here."""
    return {reward.key: REWARDS[reward.name](reward, device) for reward in settings}
