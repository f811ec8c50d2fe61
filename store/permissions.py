"""What a run made in the workbench may name of this machine and of model hubs: what the operator has said, and no more.

A web page's user names folders and files by text, so each is resolved (`..` and links followed) and must then lie in
one of the operator's folders. What is refused reads the same whether the path is there or not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from engine.servers.allowed import AllowedServers
from engine.settings import ModelSettings, RewardSettings, RunSettings
from store.config import Config

_HUB_ID = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+")


@dataclass(frozen=True)
class Permissions:
    """The operator's word. The defaults permit nothing.

    Attributes:
        functions: Python functions as rewards.
        model_roots: folders whose models, LoRAs and weights may be named.
        hub_models: patterns of hub ids that may be named.
        hub_push: patterns of hub ids that exports may be sent to.
    """

    functions: bool = False
    model_roots: tuple[Path, ...] = ()
    hub_models: tuple[str, ...] = ()
    hub_push: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config) -> Self:
        """What an installation permits."""
        return cls(config.reward_functions, config.model_roots, config.hub_models, config.hub_push)

    def checked(self, settings: RunSettings) -> RunSettings:
        """The settings with the whole paths of what they name. Raises ValueError for what they may not name."""
        if settings.prompts.file is not None or settings.prompts.evaluation_file is not None:
            raise ValueError(
                "prompts.file and prompts.evaluation_file cannot be used here; upload a prompt set instead."
            )
        rewards = tuple(self._checked_reward(reward) for reward in settings.rewards)
        return settings.model_copy(update={"model": self.checked_model(settings.model), "rewards": rewards})

    def checked_model(self, model: ModelSettings) -> ModelSettings:
        """The model with the whole paths of what it names. Raises ValueError for what it may not name."""
        if model.hub_id is not None:
            self.require_hub(model.hub_id, "model.hub_id")
        named = {"folder": model.folder, "start_from": model.start_from}
        paths = {
            name: str(self.path(place, f"model.{name}")) for name, place in named.items() if place is not None
        }  # fmt: skip
        return model.model_copy(update=paths)

    def _checked_reward(self, reward: RewardSettings) -> RewardSettings:
        if reward.function is not None and not self.functions:
            raise ValueError(
                "The reward function runs Python code, so it cannot be used here; start such a run with "
                "`palate train`, or have the operator set PALATE_REWARD_FUNCTIONS=true."
            )
        if reward.server is not None:
            # The engine asks no other server either; said here, no worker is bothered with the run.
            AllowedServers.from_environment().require(reward.server.url)
        if reward.weights is None:
            return reward
        setting = f"`weights` of the reward {reward.key}"
        found = self._find(reward.weights)
        if _HUB_ID.fullmatch(reward.weights) and (found is None or not _is_there(found)):
            self.require_hub(reward.weights, setting)
            return reward
        return reward.model_copy(update={"weights": str(self.path(reward.weights, setting))})

    def require_hub(self, hub_id: str, setting: str) -> None:
        """Raise ValueError unless a hub's id may be named."""
        if any(fnmatchcase(hub_id, pattern) for pattern in self.hub_models):
            return
        instead = "only these may be" if self.hub_models else "none may be"
        listed = f": {', '.join(self.hub_models)}" if self.hub_models else ""
        raise ValueError(
            f"{setting} names {hub_id} of the hub, and of those {instead} used here{listed}; choose a folder, or have "
            "the operator change PALATE_HUB_MODELS."
        )

    def require_push(self, hub_id: str) -> None:
        """Raise ValueError unless exports may be sent to a hub's id."""
        if any(fnmatchcase(hub_id, pattern) for pattern in self.hub_push):
            return
        listed = f"only to {', '.join(self.hub_push)}" if self.hub_push else "to no model of a hub"
        raise ValueError(
            f"Exports made here may be sent {listed}, not to {hub_id}; use `palate export … --push`, or have the "
            "operator change PALATE_HUB_PUSH."
        )

    def path(self, named: str, setting: str) -> Path:
        """The whole path of a file or folder that is named, relative to one of the roots or whole.

        Raises ValueError if it leads out of them all, or is not there.
        """
        found = self._find(named)
        if found is None:
            roots = ", ".join(map(str, self.model_roots))
            listed = f"outside the model folders of this workbench ({roots})" if roots else "which cannot be used here"
            raise ValueError(
                f"{setting} names {named}, {listed}; put it there, or have the operator add its folder to "
                "PALATE_MODEL_FOLDERS."
            )
        if not _is_there(found):
            raise ValueError(f"{setting} names {named}, which is not there; choose another, or put it back.")
        return found

    def _find(self, named: str) -> Path | None:
        """Where it would be: the first place that is there, else the first that is allowed; None if none is."""
        places: list[Path] = []
        for root in self.model_roots:
            try:
                place = (root / named).resolve()
            except (OSError, ValueError, RuntimeError):  # a NUL, or a circle of links
                continue
            if place.is_relative_to(root.resolve()):
                places.append(place)
        return next((place for place in places if _is_there(place)), places[0] if places else None)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any file
        return False


NOTHING = Permissions()
