"""What a reward still lacks on this machine before it can score (torch-free; no network is asked)."""

from __future__ import annotations

from importlib.util import find_spec

from huggingface_hub import try_to_load_from_cache

from engine.catalogue.rewards import REWARD_INFO
from engine.settings import REWARD_OPTIONS, RewardName

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def what_lacks(name: RewardName) -> str:
    """What to do before the reward can score without options, in a few words; "" if nothing."""
    info = REWARD_INFO[name]
    if info.extra and any(find_spec(module) is None for module in info.modules):
        return f'install it: .venv/bin/pip install -c constraints.txt -e ".[{info.extra}]"'
    for option in ("server", "function"):
        if name in REWARD_OPTIONS[option]:
            return f"name a `{option}`"
    return _what_weights_lack(info.usual_weights) if name in REWARD_OPTIONS["weights"] else ""


def _what_weights_lack(usual: str) -> str:
    """The same for a reward with weights, which are usually at this id of a hub's ("" = they must be named)."""
    if not usual:
        return "convert its weights (palate rewards convert), name their folder in `weights`"
    if any(isinstance(try_to_load_from_cache(usual, file), str) for file in _WEIGHT_FILES):
        return ""
    return f"weights not here: {usual} is fetched when first used, or name a folder in `weights`"
