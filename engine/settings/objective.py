"""What is optimised: GRPO, or DiffusionNFT."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.settings.section import PositiveInt, Section

Method = Literal["grpo", "nft"]


class GrpoSettings(Section):
    """The objective."""

    prompts_per_iteration: PositiveInt = Field(4, description="Prompts sampled an iteration.")
    group_size: int = Field(12, ge=2, description="Images a prompt, G.")
    updates_per_iteration: PositiveInt = Field(4, description="Optimiser updates an iteration.")
    clip_range: float = Field(1e-4, gt=0.0, lt=1.0, description="Clip range ε of the ratio.")
    advantage_clip: float = Field(5.0, gt=0.0, description="Advantages are clipped to ±this.")
    reward_mix: Literal["advantage", "reward"] = Field(
        "advantage", description="Standardise each reward in its group, then sum; or sum first."
    )
    advantage_std: Literal["group", "global"] = Field(
        "group", description="Rewards are divided by their std in the group, or over all groups of the iteration."
    )
    trim: float = Field(
        0.0, ge=0.0, lt=0.5,
        description="Share of a group's highest, and of its lowest, rewards left out of its mean and std.",
    )
    best_and_worst: int = Field(
        0, ge=0, description="Train on the k highest and the k lowest advantages of each group alone; 0 = on all."
    )
    ratio_normalisation: bool = Field(
        False, description="GRPO-Guard: centre and scale the log-ratio, and weigh each step's loss by −1/dt."
    )
    kl_weight: float = Field(0.0, ge=0.0, description="β of the KL term to the base model; 0 = off.")


class NftSettings(Section):
    """DiffusionNFT, where `method` is "nft": training on noised copies of the drawn images; any solver draws them."""

    beta: float = Field(1.0, gt=0.0, le=1.0, description="How far the implicit policies lie from the sampling one, β.")
    timesteps_per_image: PositiveInt = Field(4, description="Noise levels each image is trained at, of the grid's.")
    sampler_decay: float = Field(
        0.5, ge=0.0, lt=1.0,
        description="Decay an iteration of the averaged weights that draw the images; 0 = the newest weights do.",
    )
    base_weight: float = Field(
        1e-4, ge=0.0, description="Weight of the squared distance to the base model's velocity; 0 = off."
    )
