"""Where a reward's weights lie, a folder or a model hub's id, and how its parts are read from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from engine.quiet import quiet_libraries
from engine.rewards.preprocessing import FILE_NAME as PREPROCESSING_NAME
from engine.rewards.preprocessing import Preprocessing, read_preprocessing
from engine.settings import RewardSettings

REWARD_FILE_NAME = "reward.json"
"""What `palate rewards convert` writes last: which reward a folder is for, and which file it came from."""
MENDS_PROMPTS = "mends_prompts"

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Pretrained:
    """Weights of one reward. Everything raises ValueError, with a sentence on what to do, for what is not there.

    Attributes:
        reward: whose weights they are.
        place: a folder, or a hub's id.
        revision: which revision, of a hub's id.
        remedy: a sentence: which weights are meant, where they are had, and how they are made ready.
    """

    reward: str
    place: str
    revision: str | None
    remedy: str

    @classmethod
    def of(cls, settings: RewardSettings, remedy: str, usual: str | None = None) -> Pretrained:
        """The weights that the settings name, or the `usual` ones."""
        place = settings.weights or usual
        if place is None:
            raise ValueError(f"The reward {settings.name} has no weights: `weights` is empty. {remedy}")
        weights = cls(settings.name, place, settings.revision, remedy)
        weights._check_reward()
        return weights

    def file(self, name: str) -> Path | None:
        """A file by its name, fetched if it is on a hub; None if there is none."""
        if Path(self.place).is_dir():
            path = Path(self.place) / name
            return path if path.is_file() else None
        try:
            found = self._read(lambda **where: cached_file(self.place, name, **where))
        except OSError:
            return None
        return Path(found) if found else None

    def needed_file(self, name: str) -> Path:
        """A file by its name."""
        path = self.file(name)
        if path is None:
            raise self._absent(name)
        return path

    def config(self, model_type: str) -> Any:
        """The configuration of a model of that type."""
        try:
            config = self._read(lambda **where: AutoConfig.from_pretrained(self.place, **where))
        except (OSError, ValueError, KeyError) as error:
            raise self._absent("config.json") from error
        if config.model_type != model_type:
            raise self.unusable(f'they are of a model of the type "{config.model_type}", not "{model_type}"')
        return config

    def model(self, kind: type[Model], dtype: torch.dtype) -> Model:
        """A model with every one of its weights, frozen, on the CPU."""
        try:
            model, info = self._read(
                lambda **where: kind.from_pretrained(self.place, dtype=dtype, output_loading_info=True, **where)
            )
        except Exception as error:  # a damaged file surfaces as one of many libraries' own errors
            raise self.unusable(_first_line(error)) from error
        lacking = [*info["missing_keys"], *info["mismatched_keys"]]
        if lacking:
            raise self.unusable(f"{len(lacking)} tensors are absent or of another shape, such as {lacking[0]}")
        return model.requires_grad_(False).eval()

    def tokenizer(self) -> Any:
        """The tokenizer."""
        try:
            return self._read(lambda **where: AutoTokenizer.from_pretrained(self.place, **where))
        except Exception as error:  # see `model`
            raise self.unusable("there is no tokenizer (tokenizer.json, or vocab.json with merges.txt)") from error

    def preprocessing(self, usual: Preprocessing) -> Preprocessing:
        """What is done to images, or `usual` where nothing is said."""
        path = self.file(PREPROCESSING_NAME)
        return usual if path is None else read_preprocessing(path)

    def mends_prompts(self) -> bool:
        """Whether prompts are to be read as open_clip does: of what was converted from its checkpoints."""
        return bool(self._description().get(MENDS_PROMPTS))

    def _read(self, load: Callable[..., Any]) -> Any:
        """What `load` gives, from this machine alone if all is here: without a network, asking a hub takes minutes."""
        with quiet_libraries():
            if not Path(self.place).is_dir():
                with suppress(Exception):  # not here, or not whole: the hub is asked, and says what is wrong
                    return load(revision=self.revision, local_files_only=True)
            return load(revision=self.revision)

    def _check_reward(self) -> None:
        reward = self._description().get("reward", self.reward)
        if reward != self.reward:
            raise self.unusable(f"they are of the reward {reward}")

    def _description(self) -> dict[str, Any]:
        """What the conversion says of its folder; {} of other weights."""
        path = self.file(REWARD_FILE_NAME) if Path(self.place).is_dir() else None
        if path is None:
            return {}
        try:
            description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {"reward": None} | description
        except (ValueError, TypeError) as error:
            raise self.unusable(f"{REWARD_FILE_NAME} is damaged") from error

    def _absent(self, name: str) -> ValueError:
        if Path(self.place).is_dir():
            return self.unusable(f"there is no readable {name}")
        return self.unusable(
            f"they are no folder here, and no hub gave their {name} (there may be no network, or no such repository)"
        )

    def unusable(self, reason: str) -> ValueError:
        """The error that says why these weights will not do, and what will."""
        return ValueError(f"The reward {self.reward} cannot use the weights {self.place}: {reason}. {self.remedy}")


def precision_on(device: torch.device) -> torch.dtype:
    """What rewards compute in: bfloat16 on a GPU, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
