"""Rewards whose scores come from a server: in Palate's protocol (`http`), or from a judge (`judge`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from engine.rewards.base import Pixels, Scores
from engine.servers.connection import Connection, ServerError
from engine.servers.judging import judge
from engine.servers.scores import ask_scores
from engine.settings import JudgeSettings, RewardSettings, ServerSettings

Ask = Callable[[Pixels, Sequence[str]], list[float]]


@dataclass(frozen=True)
class Served:
    """What a server says of each image, several requests under way at a time.

    Attributes:
        ask: scores of the images of one request; raises ServerError.
        batch_size: images in a request.
        concurrency: requests under way at a time.
    """

    ask: Ask
    batch_size: int
    concurrency: int

    @classmethod
    def http(cls, settings: RewardSettings, device: torch.device) -> Served:
        """Any server that speaks Palate's protocol. Raises ValueError if it may not be asked."""
        connection = Connection.to(_server(settings))
        return cls(
            lambda images, prompts: ask_scores(connection, list(images), prompts),
            connection.settings.batch_size,
            connection.settings.concurrency,
        )

    @classmethod
    def judge(cls, settings: RewardSettings, device: torch.device) -> Served:
        """A vision-language model behind chat completions. Raises ValueError if it may not be asked."""
        connection, asked = Connection.to(_server(settings)), settings.judge or JudgeSettings()
        return cls(
            lambda images, prompts: [judge(connection, asked, images[0], prompts[0])],
            1,
            connection.settings.concurrency,
        )

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Every prompt will do: the server decides."""

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Score uint8 images (N, H, W, 3). Images of a request that failed are NaN; the others keep their scores."""
        gone: list[ServerError] = []

        def ask(part: slice) -> list[float]:
            # A server that is gone is not waited for once more with every image that is left.
            if len(gone) >= self.concurrency:
                raise gone[-1]
            try:
                answer = self.ask(images[part], prompts[part])
            except ServerError as error:
                if error.may_go_better:
                    gone.append(error)
                raise
            gone.clear()
            return answer

        values = np.full(len(images), np.nan, dtype=np.float32)
        reasons: list[str] = []
        parts = [slice(start, start + self.batch_size) for start in range(0, len(images), self.batch_size)]
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = [pool.submit(ask, part) for part in parts]
            for part, answer in zip(parts, asked, strict=True):
                try:
                    values[part] = answer.result()
                except ServerError as error:
                    reasons.append(str(error))
        return Scores(values, failure=reasons[0] if reasons else "")


def _server(settings: RewardSettings) -> ServerSettings:
    assert settings.server is not None, "the settings refuse such a reward without a server"
    return settings.server
