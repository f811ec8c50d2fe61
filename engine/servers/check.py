"""Trying a reward's server before a run begins: whether it may be asked, and answers as it should."""

from __future__ import annotations

import math

import numpy as np

from engine.servers.connection import Connection, ServerError
from engine.servers.judging import judge
from engine.servers.scores import ask_scores
from engine.settings import JudgeSettings, RewardSettings

_MOST_SECONDS = 60.0


def check_server(reward: RewardSettings) -> None:
    """Have the reward's server score one grey image, once. Raises ValueError, with a sentence, if it does not."""
    if reward.server is None:
        return
    patience = min(_MOST_SECONDS, reward.server.timeout)
    connection = Connection.to(reward.server.model_copy(update={"retries": 0, "timeout": patience}))
    image, prompt = np.full((64, 64, 3), 128, dtype=np.uint8), "a grey square"
    try:
        if reward.name == "judge":
            judge(connection, reward.judge or JudgeSettings(), image, prompt)
            return
        if math.isnan(ask_scores(connection, [image], [prompt])[0]):
            raise ServerError(f"the server {connection.origin} gave a test image no score")
    except ServerError as error:
        raise ValueError(f"The reward {reward.key} cannot be used: {error}.") from error
