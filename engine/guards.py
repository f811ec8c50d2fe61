"""Guard rails: what goes wrong in a run, noticed and named in plain words (torch-free).

Each alarm speaks once when its condition begins, and again only after it has ended. What the guards remember is a part
of the checkpoint, so that a resumed run says what the straight one would.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.settings import GuardSettings

_REMEMBERED = 20
_FEWEST = 5


@dataclass
class GuardMemory:
    """What the guards compare with: plain data, as JSON holds it."""

    grad_norms: list[float] = field(default_factory=list)
    first_diversity: float | None = None
    first_scores: dict[str, float] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)


class Guards:
    """Watches a run's figures. Each method returns the sentences to tell; empty where nothing new is wrong."""

    def __init__(self, settings: GuardSettings, weights: Mapping[str, float]) -> None:
        """`weights` are the rewards', by name; a weight of 0 marks one that is watched and not trained on."""
        self.settings = settings
        self.weights = dict(weights)
        self.memory = GuardMemory()

    def state(self) -> dict[str, Any]:
        """The memory as JSON can hold it."""
        return asdict(self.memory)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the memory to what `state` gave."""
        self.memory = GuardMemory(**state)

    def explodes(self, loss: float, grad_norm: float) -> str:
        """Why this update must not be taken as it is, or ""; asked before the optimiser's step."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "The loss is no longer a finite number; a smaller optimiser.learning_rate may help."
        known = self.memory.grad_norms
        limit = self.settings.max_grad_growth * statistics.median(known) if len(known) >= _FEWEST else math.inf
        if grad_norm > limit > 0:
            return (
                f"The gradient is exploding: its norm is {grad_norm:.3g}, {grad_norm / statistics.median(known):.0f} "
                "times what it was lately; a smaller optimiser.learning_rate may help."
            )
        self.memory.grad_norms = [*known, grad_norm][-_REMEMBERED:]
        return ""

    def fails(self, failed_shares: Mapping[str, float]) -> str:
        """Why so many failed scores, by reward as shares, end the run, or ""; asked before the update."""
        name = max(failed_shares, key=failed_shares.__getitem__)
        if failed_shares[name] <= self.settings.max_failed_share:
            return ""
        return (
            f"{failed_shares[name]:.0%} of the scores of the reward {name} failed (guards.max_failed_share is "
            f"{self.settings.max_failed_share:.0%}); the log says what it reported. Mend that; the "
            "run can then go on from its newest checkpoint."
        )

    def after_iteration(self, drift: float, diversity: float) -> list[str]:
        """Look at an iteration: the ratio drift of its first update, and how far images of a group differ."""
        memory, settings = self.memory, self.settings
        if memory.first_diversity is None:
            memory.first_diversity = diversity
        first = memory.first_diversity
        alarms = {
            "drift": drift > settings.max_ratio_drift,
            "diversity": diversity < settings.min_diversity * first,
        }
        sentences = {
            "drift": (
                f"The images are not quite the policy's own: the ratio of the first update is off by {drift:.2g} "
                f"(limit {settings.max_ratio_drift:g}). Rollout and training round differently; float32 rounds less."
            ),
            "diversity": (
                f"The images of a prompt grow alike: they differ by {diversity:.3f}, and by {first:.3f} at the start. "
                "A higher grpo.kl_weight, a second reward or an earlier checkpoint keep more variety."
            ),
        }
        return self._begun(alarms, sentences)

    def after_evaluation(self, scores: Mapping[str, float]) -> list[str]:
        """Look at held-out means by reward: whether a watched one falls while one that is trained on rises."""
        memory = self.memory
        if not memory.first_scores:
            memory.first_scores = dict(scores)
            return []
        change = {name: scores[name] - first for name, first in memory.first_scores.items() if name in scores}
        rises = [name for name, weight in self.weights.items() if weight > 0 and change.get(name, 0.0) > 0]
        alarms: dict[str, bool] = {}
        sentences: dict[str, str] = {}
        for name, weight in self.weights.items():
            first = memory.first_scores.get(name)
            if weight > 0 or first is None or name not in change:
                continue
            alarms[f"hacking {name}"] = bool(rises) and change[name] < -self.settings.max_watched_fall * abs(first)
            sentences[f"hacking {name}"] = (
                f"{' and '.join(rises)} rises while {name}, which is only watched, falls: from {first:.3g} to "
                f"{scores[name]:.3g} on held-out prompts. The model may be gaming the reward; give {name} a weight, or "
                "stop here."
            )
        return self._begun(alarms, sentences)

    def _begun(self, alarms: Mapping[str, bool], sentences: Mapping[str, str]) -> list[str]:
        """The sentences of alarms that were silent until now; those that ended are forgotten."""
        active = set(self.memory.active)
        begun = [name for name, rings in alarms.items() if rings and name not in active]
        active = (active | set(begun)) - {name for name, rings in alarms.items() if not rings}
        self.memory.active = sorted(active)
        return [sentences[name] for name in begun]
