"""What "better" means."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.settings.section import Section

RewardName = Literal["composition", "vividness", "compressibility", "incompressibility"]


class RewardSettings(Section):
    """One reward and its weight."""

    name: RewardName = Field(description="Which reward.")
    weight: float = Field(
        1.0, ge=0.0, description="Share in the mix; weights are normalised to sum 1. 0 = measured, not trained on."
    )
