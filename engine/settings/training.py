"""What is trained and how far, what is looked at on the way, and what is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.settings.section import PositiveInt, Section, UnitInterval

OptimiserName = Literal["adamw", "adamw_8bit"]
LearningRateSchedule = Literal["constant", "linear", "cosine"]


class OptimiserSettings(Section):
    """AdamW."""

    name: OptimiserName = Field(
        "adamw",
        description="AdamW's two moments of a weight in 32 bits each, or in 8 (needs the extra quantisation).",
    )
    learning_rate: float = Field(1e-4, gt=0.0, le=1.0, description="AdamW learning rate, where it is highest.")
    schedule: LearningRateSchedule = Field(
        "constant", description="Whether the learning rate stays, or falls to 0 at the run's end."
    )
    decay_start: float = Field(
        0.5, ge=0.0, lt=1.0, description="Share of the iterations before it begins to fall (linear and cosine only)."
    )
    weight_decay: float = Field(1e-4, ge=0.0, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0.0, description="Gradient norm is clipped to this.")
    ema_decay: float = Field(
        0.0, ge=0.0, lt=1.0, description="Decay an update of the averaged weights used to evaluate and export; 0 = off."
    )


class TuningSettings(Section):
    """What is trained."""

    method: Literal["lora", "full"] = Field("lora", description="LoRA adapter, or all weights of the transformer.")
    rank: PositiveInt = Field(32, le=1024, description="LoRA rank.")
    alpha: float = Field(32.0, gt=0.0, description="LoRA alpha; the adapter is scaled by alpha/rank.")
    layers: Literal["blocks", "all"] = Field(
        "blocks",
        description="What a LoRA adapts: attention and feed-forward of the blocks, or every linear layer.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in training: less memory, slower.")


class EvaluationSettings(Section):
    """Fixed-seed samples of the held-out prompts, drawn as the model's plain pipeline draws them."""

    every: PositiveInt = Field(10, description="Iterations between evaluations; step 0 is the base model.")
    num_prompts: PositiveInt = Field(16, le=512, description="Held-out prompts drawn each time.")
    num_steps: int = Field(25, ge=1, le=200, description="Denoising steps (deterministic).")
    guidance_scale: float = Field(1.0, ge=1.0, le=30.0, description="Guidance, as in sampling; 1 = none.")
    seed: int = Field(1000, ge=0, description="Prompt i is drawn from seed + i, at every step the same.")


class CheckpointSettings(Section):
    """Checkpoints a run can resume from and export."""

    every: PositiveInt = Field(20, description="Iterations between checkpoints; the last iteration always has one.")
    keep: PositiveInt = Field(3, description="How many of the newest are kept.")


class GuardSettings(Section):
    """What is watched while a run goes on, and what happens then. A limit is in the unit of its field."""

    action: Literal["report", "skip", "stop"] = Field(
        "report",
        description="On an alarm: report it; skip the update too, where one update is at fault; or stop the run with a "
        "checkpoint. An update that is no finite number is never taken: it is skipped, or stops the run.",
    )
    max_grad_growth: float = Field(
        100.0, gt=1.0, description="Alarm where the gradient's norm is this many times its median of late."
    )
    max_ratio_drift: float = Field(
        0.01, gt=0.0, description="Alarm where |ρ−1| of an iteration's first update is larger (GRPO only)."
    )
    min_diversity: float = Field(
        0.3, ge=0.0, lt=1.0, description="Alarm where images of a group differ by less than this share of the start's."
    )
    max_watched_fall: float = Field(
        0.2, gt=0.0,
        description="Alarm where a reward of weight 0 falls by this share while one that is trained on rises.",
    )
    max_failed_share: UnitInterval = Field(
        0.5, description="Alarm where more of an iteration's scores of one reward fail; it stops."
    )
