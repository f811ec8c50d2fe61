"""One run, whole."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Self

import yaml
from pydantic import Field, model_validator

from engine.settings.compute import ComputeSettings
from engine.settings.model import ModelSettings
from engine.settings.objective import GrpoSettings, Method, NftSettings
from engine.settings.prompts import PromptSettings
from engine.settings.rewards import RewardSettings
from engine.settings.sampling import FlashSettings, SamplingSettings, WindowSettings, last_position_of
from engine.settings.section import PositiveInt, Section
from engine.settings.training import (
    CheckpointSettings,
    EvaluationSettings,
    GuardSettings,
    OptimiserSettings,
    TuningSettings,
)


class RunSettings(Section):
    """One run, whole. Equal settings on the same machine and versions give the same run."""

    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random in training.")
    iterations: PositiveInt = Field(100, le=1_000_000, description="Training iterations.")
    method: Method = Field(
        "grpo", description="GRPO on the window's stochastic steps, or DiffusionNFT on noised copies of the images."
    )
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = PromptSettings()
    rewards: tuple[RewardSettings, ...] = (RewardSettings(name="composition"),)
    sampling: SamplingSettings = SamplingSettings()
    window: WindowSettings = WindowSettings()
    flash: FlashSettings = FlashSettings()
    grpo: GrpoSettings = GrpoSettings()
    nft: NftSettings = NftSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    tuning: TuningSettings = TuningSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    guards: GuardSettings = GuardSettings()
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_rewards()
        self._check_window()
        self._check_images()
        self._check_processes()
        self._check_quantisation()
        if self.method == "nft":
            self._check_nft()
        return self

    def _check_rewards(self) -> None:
        if not self.rewards:
            raise ValueError("Choose at least one reward.")
        keys = [reward.key for reward in self.rewards]
        if len(set(keys)) != len(keys):
            raise ValueError(
                "Each reward may be named once: add its weights together, or give one of the two a `label` of its own."
            )
        if not any(reward.weight > 0 for reward in self.rewards):
            raise ValueError("All reward weights are zero, so there is nothing to learn; give one a weight above 0.")
        if not math.isfinite(sum(reward.weight for reward in self.rewards)):
            raise ValueError("The reward weights are too large to add up; use weights around 1.")

    def _check_window(self) -> None:
        num_steps, size = self.sampling.num_steps, self.window.size
        if size > num_steps - 1:
            raise ValueError(
                f"The window has {size} steps, but the last of the {num_steps} sampling steps is never stochastic; use "
                f"a window of at most {num_steps - 1} steps, or more sampling steps."
            )
        limit = last_position_of(size, num_steps)
        if self.window.start > limit:
            raise ValueError(
                f"window.start is {self.window.start}, but with {num_steps} steps and a window of {size} "
                f"the last possible position is {limit}."
            )
        if self.window.last is not None and not self.window.start <= self.window.last <= limit:
            raise ValueError(
                f"window.last is {self.window.last}; it must be between window.start ({self.window.start}) and {limit}."
            )

    def _check_images(self) -> None:
        if self.sampling.shared_prefix and not self.sampling.shared_noise:
            raise ValueError(
                "sampling.shared_prefix needs sampling.shared_noise: images that start from different "
                "noise have no common prefix. Turn shared_prefix off, or shared_noise on."
            )
        grpo = self.grpo
        if 2 * grpo.best_and_worst > grpo.group_size:
            raise ValueError(
                f"grpo.best_and_worst is {grpo.best_and_worst}, but a group has only {grpo.group_size} images; use at "
                f"most {grpo.group_size // 2}."
            )
        num_images = grpo.prompts_per_iteration * self.num_trained_images
        if grpo.updates_per_iteration > num_images:
            raise ValueError(
                f"grpo.updates_per_iteration is {grpo.updates_per_iteration}, but an iteration trains on "
                f"only {num_images} images; use at most that many updates."
            )

    def _check_processes(self) -> None:
        num_prompts, num_processes = self.grpo.prompts_per_iteration, self.compute.num_processes
        if num_processes > num_prompts:
            raise ValueError(
                f"compute.num_processes is {num_processes}, but grpo.prompts_per_iteration is only {num_prompts}, and "
                "a prompt's group of images stays in one process; use more prompts, or fewer processes."
            )
        if self.compute.sharding == "none":
            return
        if self.compute.compile:
            raise ValueError('compute.compile does not go with compute.sharding "fsdp"; set it to false.')
        if self.tuning.method == "lora":
            raise ValueError(
                'compute.sharding "fsdp" is for tuning.method "full", where all weights are trained; use "none".'
            )
        if num_prompts % num_processes:
            raise ValueError(
                f'With compute.sharding "fsdp" every process needs equally many prompts: grpo.prompts_per_iteration '
                f"({num_prompts}) must be a multiple of compute.num_processes ({num_processes})."
            )

    def _check_quantisation(self) -> None:
        if self.model.quantisation != "none" and self.tuning.method == "full":
            raise ValueError(
                f'model.quantisation "{self.model.quantisation}" holds frozen weights in fewer bits, and tuning.method '
                '"full" trains them all; train a LoRA (tuning.method "lora"), or set model.quantisation to "none".'
            )
        if self.optimiser.name == "adamw_8bit" and self.compute.sharding != "none":
            raise ValueError(
                'optimiser.name "adamw_8bit" knows no weights held in parts (compute.sharding "fsdp"); use "adamw", '
                "whose moments the processes share."
            )

    def _check_nft(self) -> None:
        if self.sampling.shared_noise:
            raise ValueError(
                'method "nft" draws without randomness, so the images of a group must start from noise of their own: '
                "turn sampling.shared_noise and sampling.shared_prefix off."
            )
        if self.nft.timesteps_per_image > self.sampling.num_steps:
            raise ValueError(
                f"nft.timesteps_per_image is {self.nft.timesteps_per_image}, but there are only "
                f"{self.sampling.num_steps} sampling steps to choose from; use at most that many."
            )

    @property
    def num_trained_images(self) -> int:
        """Images of each group that are trained on."""
        return 2 * self.grpo.best_and_worst or self.grpo.group_size

    def digest(self) -> str:
        """Sixteen hex digits that name these settings (sha256 of their sorted JSON)."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The settings as YAML that `from_yaml` reads back to equal settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
