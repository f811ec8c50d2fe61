"""Presets: named settings to start from. To add one: a function here that returns settings, and a line in `PRESETS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.settings import (
    FlashSettings,
    GrpoSettings,
    NftSettings,
    RunSettings,
    SamplingSettings,
    WindowSettings,
)


@dataclass(frozen=True)
class Preset:
    """A named recipe, with a line to choose it by; `builtin`: tuned for the built-in model, and for it alone."""

    title: str
    help: str
    make: Callable[[], RunSettings]
    builtin: bool = False


def mixgrpo() -> RunSettings:
    """MixGRPO's published recipe: 25 steps, a progressive window of 4 (arXiv 2507.21802, section 4)."""
    return RunSettings(iterations=300)


def mixgrpo_flash() -> RunSettings:
    """MixGRPO-Flash: the steps after the window cut to 40 %, solved by DPM-Solver++."""
    return RunSettings(
        iterations=300, window=WindowSettings(iterations_per_position=20), flash=FlashSettings(enabled=True)
    )


def mixgrpo_flash_frozen() -> RunSettings:
    """MixGRPO-Flash*: the window stays on the first steps, the rest cut to 20 %."""
    return RunSettings(
        iterations=300, window=WindowSettings(strategy="frozen"), flash=FlashSettings(enabled=True, ratio=0.2)
    )


def flow_grpo() -> RunSettings:
    """Flow-GRPO (2505.05470): every step but the last stochastic and trained, each image from noise of its own."""
    return RunSettings(
        iterations=300,
        sampling=SamplingSettings(shared_noise=False, shared_prefix=False),
        window=WindowSettings(size=24, strategy="frozen"),
        grpo=GrpoSettings(advantage_std="global"),
    )


def flow_grpo_fast() -> RunSettings:
    """Flow-GRPO-Fast: one deterministic trajectory, two stochastic steps at random in its first half, all trained."""
    return RunSettings(iterations=300, window=WindowSettings(size=2, strategy="random", last=12))


def dance_grpo() -> RunSettings:
    """DanceGRPO (2505.07818): every step but the last by its own SDE, a random 0.6 of them trained, noise shared."""
    return RunSettings(
        iterations=300,
        sampling=SamplingSettings(kernel="dance_sde", eta=0.3),
        window=WindowSettings(size=24, strategy="frozen", trained_fraction=0.6),
    )


def turbo() -> RunSettings:
    """Flash with a window of 2, trained on the 3 best and the 3 worst images of 12: the most reward a second."""
    return RunSettings(
        iterations=300,
        window=WindowSettings(size=2, iterations_per_position=20),
        flash=FlashSettings(enabled=True),
        grpo=GrpoSettings(best_and_worst=3),
    )


def diffusion_nft() -> RunSettings:
    """DiffusionNFT (2509.16117): training on noised images; no stochastic steps, any solver."""
    return RunSettings(
        iterations=300,
        method="nft",
        sampling=SamplingSettings(shared_noise=False, shared_prefix=False),
        flash=FlashSettings(enabled=True),
        nft=NftSettings(),
    )


def builtin_vividness() -> RunSettings:
    """Vividness alone, on the built-in model: the quickest look at learning, and at reward hacking."""
    return RunSettings.model_validate(
        _builtin(40)
        | {
            "rewards": [{"name": "vividness"}, {"name": "composition", "weight": 0.0}],
            "grpo": {"prompts_per_iteration": 4, "updates_per_iteration": 2},
            "optimiser": {"learning_rate": 2e-3},
        }
    )


def builtin_balance() -> RunSettings:
    """Vividness held in balance by composition: what several rewards are for. The demo run."""
    settings = _builtin(160) | _every_layer(learning_rate=6e-4)
    # Summed first: where all images of a prompt are right, tiny differences must not count as a mistake elsewhere does.
    settings["grpo"] |= {"reward_mix": "reward"}
    # The two pull apart: at a constant rate the policy swings between them, and at a falling one it settles.
    settings["optimiser"] |= {"schedule": "linear", "decay_start": 0.4}
    return RunSettings.model_validate(settings | {"rewards": [{"name": "vividness"}, {"name": "composition"}]})


def builtin_composition() -> RunSettings:
    """Composition alone, every linear layer adapted: pictures that show what the prompt asks."""
    return RunSettings.model_validate(
        _builtin(60) | _every_layer(learning_rate=5e-4) | {"rewards": [{"name": "composition"}]}
    )


def _every_layer(learning_rate: float) -> dict[str, Any]:
    """Composition needs more of the model than the blocks, at a slower and averaged pace."""
    return {"tuning": {"layers": "all"}, "optimiser": {"learning_rate": learning_rate, "ema_decay": 0.9}}


def _builtin(iterations: int) -> dict[str, Any]:
    """What the built-in presets share: ten Flash steps, the window on the first half, where a scene is laid out."""
    return {
        "iterations": iterations,
        "model": {"precision": "bfloat16"},
        "sampling": {"num_steps": 10},
        "window": {"size": 4, "last": 2, "iterations_per_position": 5},
        "flash": {"enabled": True, "ratio": 0.6},
        "grpo": {"prompts_per_iteration": 8, "updates_per_iteration": 2},
        "evaluation": {"every": 10, "num_prompts": 24},
        "checkpoints": {"every": 20},
    }


PRESETS: dict[str, Preset] = {
    "builtin_balance": Preset(
        "Built-in: balance", "Vividness and composition together: a quarter of an hour on two cores.", builtin_balance,
        builtin=True,
    ),
    "builtin_vividness": Preset(
        "Built-in: vividness", "Vividness alone: fast, and a lesson in reward hacking.", builtin_vividness, builtin=True
    ),
    "builtin_composition": Preset(
        "Built-in: composition",
        "Scenes that show what the prompt asks, past what guidance reaches.",
        builtin_composition,
        builtin=True,
    ),
    "mixgrpo": Preset("MixGRPO", "The paper's recipe: a window of 4 stochastic steps that moves on.", mixgrpo),
    "mixgrpo_flash": Preset(
        "MixGRPO-Flash", "The same with fewer, higher-order steps after the window: faster.", mixgrpo_flash
    ),
    "mixgrpo_flash_frozen": Preset(
        "MixGRPO-Flash*", "The window stays on the first steps: the fastest of the paper.", mixgrpo_flash_frozen
    ),
    "turbo": Preset("Turbo", "Flash, a window of 2, and only the best and the worst images trained on.", turbo),
    "diffusion_nft": Preset(
        "DiffusionNFT", "Another way: training on noised copies of the images, no stochastic steps.", diffusion_nft
    ),
    "dance_grpo": Preset("DanceGRPO", "To compare with: every step stochastic, 14 of them trained.", dance_grpo),
    "flow_grpo": Preset("Flow-GRPO", "To compare with: every step stochastic and trained.", flow_grpo),
    "flow_grpo_fast": Preset(
        "Flow-GRPO-Fast", "To compare with: two stochastic steps, at random in the first half.", flow_grpo_fast
    ),
}
