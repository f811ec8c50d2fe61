"""Trying rewards on one image, as `palate rewards score` does: what each says, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from pydantic import ValidationError

from engine.catalogue import REWARD_INFO
from engine.catalogue.presence import what_lacks
from engine.requests import ScoringRequest
from engine.rewards import Pixels, make_rewards, score_all
from engine.run import find_device
from engine.settings import REWARD_OPTIONS, RewardSettings
from engine.settings_text import explain, read_settings

_LARGEST = 2**26
_UNTIMED = REWARD_OPTIONS["server"] | REWARD_OPTIONS["function"]
"""What is asked once, for it may cost; the others twice, for the first time prepares."""


def try_rewards(request: ScoringRequest, tell: Callable[[str], None]) -> bool:
    """Tell a line for each reward, its score and milliseconds or why there is none; True if there was a score.

    Raises ValueError for an image, settings or a reward's name that there are not.
    """
    image = _read_image(request)
    names = dict.fromkeys(name for name, _ in _asked(request))
    width = max(map(len, names))
    any_scored = False
    for name, reward in _asked(request):
        try:
            text = _try(reward if isinstance(reward, RewardSettings) else _plain(reward), image, request)
            any_scored = True
        except ValueError as error:
            text = f"no score: {error}"
        tell(f"{name:<{width}}  {text}")
    return any_scored


def _asked(request: ScoringRequest) -> Iterator[tuple[str, RewardSettings | str]]:
    """The rewards by label or name: those of the settings as they are there, others by their name alone."""
    given = read_settings(request.settings).rewards if request.settings is not None else ()
    of_settings = {reward.key: reward for reward in given}
    unknown = [name for name in request.rewards if name not in of_settings and name not in REWARD_INFO]
    if unknown:
        known = dict.fromkeys([*of_settings, *REWARD_INFO])
        raise ValueError(f"There is no reward named {unknown[0]}; choose among: {', '.join(known)}.")
    for name in request.rewards or of_settings or REWARD_INFO:
        yield name, of_settings.get(name, name)


def _plain(name: str) -> RewardSettings:
    """A reward without options. Raises ValueError if it needs some."""
    try:
        return RewardSettings.model_validate({"name": name})
    except ValidationError as error:
        raise ValueError(f"{explain(error)} (in a settings file, given with --settings)") from error


def _try(reward: RewardSettings, image: Pixels, request: ScoringRequest) -> str:
    """The score, further measures, and milliseconds. Raises ValueError, with a sentence, if there is no score."""
    if not request.rewards and request.settings is None and (lacking := what_lacks(reward.name)):
        raise ValueError(lacking)
    device = find_device(request.device)
    rewards = make_rewards([reward], device)
    rewards[reward.key].check_prompts([request.prompt])
    batch = score_all(rewards, image, [request.prompt])
    if batch.messages:
        raise ValueError(batch.messages[0])
    if reward.name not in _UNTIMED:
        batch = score_all(rewards, image, [request.prompt])
    extras = "".join(f", {measure} {column[0]:.4g}" for measure, column in batch.extras.items())
    return f"{batch.values[reward.key][0]:.4f}{extras}  ({1000 * batch.seconds[reward.key]:.1f} ms)"


def _read_image(request: ScoringRequest) -> Pixels:
    """The image as uint8 (1, H, W, 3). Raises ValueError if it is none."""
    try:
        with Image.open(request.image) as image:
            if image.width * image.height > _LARGEST:
                raise ValueError(f"{request.image} has more than {_LARGEST / 1e6:.0f} million pixels.")
            return np.asarray(image.convert("RGB"), dtype=np.uint8)[None]
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{request.image} cannot be read as an image.") from error
