"""RunSettings: everything a run is told, typed, with units, and free of torch.

The workbench draws its forms from these fields, the database stores them as JSON, the engine runs them, and
``palate train`` reads them from YAML. Unknown keys are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ModelName = Literal["builtin"]
RewardName = Literal["composition", "vividness", "compressibility", "incompressibility"]
KernelName = Literal["flow_sde", "dance_sde", "cps"]
WindowStrategy = Literal["progressive", "frozen", "random", "decay", "exp_decay"]

PositiveInt = Annotated[int, Field(ge=1)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """Which text-to-image model is tuned, and in what precision."""

    name: ModelName = Field("builtin", description="Model family.")
    folder: str | None = Field(
        None, description="A diffusers pipeline folder of that family to start from; empty = the family's own weights."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the transformer's arithmetic; log-probabilities are always float32."
    )


class PromptSettings(Section):
    """Where the prompts come from. Without files: the built-in prompts and their held-out part."""

    file: str | None = Field(
        None, description="Training prompts: a .txt (a line each), .csv or .jsonl file; empty = the built-in prompts."
    )
    evaluation_file: str | None = Field(
        None, description="Held-out prompts; empty = the last fifth of `file`, or the built-in held-out prompts."
    )
    seed: int = Field(0, ge=0, description="Seed of the order of prompts and of the built-in prompt draw.")


class RewardSettings(Section):
    """One reward and its weight."""

    name: RewardName = Field(description="Which reward.")
    weight: float = Field(
        1.0, ge=0.0, description="Share in the mix; weights are normalised to sum 1. 0 = measured, not trained on."
    )


class SamplingSettings(Section):
    """How training images are drawn."""

    num_steps: int = Field(25, ge=2, le=200, description="Denoising steps T.")
    shift: Annotated[float, Field(gt=0.0)] | Literal["model"] = Field(
        3.0,
        description='Time shift of the σ grid (maths: σ = shift·s/(1+(shift−1)s)), or "model" for the model\'s own.',
    )
    guidance_scale: float = Field(
        1.0, ge=1.0, le=30.0, description="Classifier-free guidance; 1 = guidance-free (half the cost an image)."
    )
    kernel: KernelName = Field("flow_sde", description="Transition kernel of the stochastic steps.")
    eta: float = Field(0.7, gt=0.0, le=1.0, description="Noise level η of the kernel.")
    shared_noise: bool = Field(True, description="One initial noise for all images of a prompt's group.")
    shared_prefix: bool = Field(
        True, description="Compute the group's common ODE prefix once (exact; needs shared_noise)."
    )


class WindowSettings(Section):
    """Which steps are stochastic and trained: l … l+size−1."""

    size: PositiveInt = Field(4, description="Steps in the window, W.")
    strategy: WindowStrategy = Field("progressive", description="How the window moves over iterations.")
    start: int = Field(0, ge=0, description="First position l₀.")
    last: int | None = Field(
        None, ge=0, description="Last position; empty = T−2−W. The progressive window wraps to `start` past it."
    )
    stride: PositiveInt = Field(1, description="Steps the progressive window moves at a time.")
    iterations_per_position: PositiveInt = Field(
        25, description="Iterations τ spent at a position (at most, for decay)."
    )
    min_iterations_per_position: PositiveInt = Field(1, description="Fewest iterations at a position (decay only).")


class FlashSettings(Section):
    """MixGRPO-Flash: fewer, higher-order steps after the window."""

    enabled: bool = Field(False, description="Re-grid the steps after the window and solve them by DPM-Solver++.")
    ratio: float = Field(0.4, gt=0.0, le=1.0, description="Steps kept after the window, as a share.")
    order: Literal[1, 2, 3] = Field(2, description="Order of DPM-Solver++.")
    solver_type: Literal["midpoint", "heun"] = Field("midpoint", description="Variant of the second-order solver.")


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
    kl_weight: float = Field(0.0, ge=0.0, description="β of the KL term to the base model; 0 = off.")


class OptimiserSettings(Section):
    """AdamW."""

    learning_rate: float = Field(1e-4, gt=0.0, le=1.0, description="AdamW learning rate, constant.")
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
    guidance_scale: float = Field(1.0, ge=1.0, le=30.0, description="Classifier-free guidance; 1 = none.")
    seed: int = Field(1000, ge=0, description="Prompt i is drawn from seed + i, at every step the same.")


class CheckpointSettings(Section):
    """Checkpoints a run can resume from and export."""

    every: PositiveInt = Field(20, description="Iterations between checkpoints; the last iteration always has one.")
    keep: PositiveInt = Field(3, description="How many of the newest are kept.")


class ComputeSettings(Section):
    """Device and batching."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU if there is one.")
    micro_batch: PositiveInt = Field(48, description="Most images in one forward pass.")
    num_threads: int = Field(0, ge=0, description="CPU threads; 0 = all cores.")


class RunSettings(Section):
    """One run, whole. Equal settings on the same machine and versions give the same run."""

    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random in training.")
    iterations: PositiveInt = Field(100, le=1_000_000, description="Training iterations.")
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = PromptSettings()
    rewards: tuple[RewardSettings, ...] = (RewardSettings(name="composition"),)
    sampling: SamplingSettings = SamplingSettings()
    window: WindowSettings = WindowSettings()
    flash: FlashSettings = FlashSettings()
    grpo: GrpoSettings = GrpoSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    tuning: TuningSettings = TuningSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [reward.name for reward in self.rewards]
        if not names:
            raise ValueError("Choose at least one reward.")
        if len(set(names)) != len(names):
            raise ValueError("Each reward may be named once; add its weights together instead.")
        if not any(reward.weight > 0 for reward in self.rewards):
            raise ValueError("All reward weights are zero, so there is nothing to learn; give one a weight above 0.")
        if not math.isfinite(sum(reward.weight for reward in self.rewards)):
            raise ValueError("The reward weights are too large to add up; use weights around 1.")
        self._check_window()
        if self.sampling.shared_prefix and not self.sampling.shared_noise:
            raise ValueError(
                "sampling.shared_prefix needs sampling.shared_noise: images that start from different "
                "noise have no common prefix. Turn shared_prefix off, or shared_noise on."
            )
        num_images = self.grpo.prompts_per_iteration * self.grpo.group_size
        if self.grpo.updates_per_iteration > num_images:
            raise ValueError(
                f"grpo.updates_per_iteration is {self.grpo.updates_per_iteration}, but an iteration has "
                f"only {num_images} images; use at most that many updates."
            )
        return self

    def _check_window(self) -> None:
        num_steps, size = self.sampling.num_steps, self.window.size
        limit = num_steps - 2 - size
        if limit < 0:
            raise ValueError(
                f"The window has {size} steps but the last two of the {num_steps} sampling steps are never "
                f"stochastic; use a window of at most {num_steps - 2} steps, or more sampling steps."
            )
        if self.window.start > limit:
            raise ValueError(
                f"window.start is {self.window.start}, but with {num_steps} steps and a window of {size} "
                f"the last possible position is {limit}."
            )
        if self.window.last is not None and not self.window.start <= self.window.last <= limit:
            raise ValueError(
                f"window.last is {self.window.last}; it must be between window.start ({self.window.start}) and {limit}."
            )

    @property
    def last_window_position(self) -> int:
        """The last position l the window may take: `window.last`, or T−2−W."""
        limit = self.sampling.num_steps - 2 - self.window.size
        return limit if self.window.last is None else self.window.last

    def digest(self) -> str:
        """Sixteen hex digits that name these settings (sha256 of their sorted JSON)."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The settings as YAML that `from_yaml` reads back to equal settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class SettingsError(ValueError):
    """A settings text that cannot be used, in sentences for a person."""


def explain(error: ValidationError) -> str:
    """One sentence a mistake: where it is and what is wrong with it."""
    return "\n".join(_explain_one(item["loc"], item["type"], item["msg"]) for item in error.errors())


def _explain_one(location: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"Unknown setting `{where}`; check its spelling, or remove it."
    if kind == "missing":
        return f"`{where}` is missing; add it."
    message = message.removeprefix("Value error, ")
    return f"`{where}`: {message}." if where else message


def parse_settings(data: object) -> RunSettings:
    """Settings from plain data. Raises SettingsError with one sentence for each mistake."""
    if not isinstance(data, dict):
        raise SettingsError("The settings must be a list of `key: value` lines, such as `palate presets NAME` prints.")
    try:
        return RunSettings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(explain(error)) from error


def from_yaml(text: str) -> RunSettings:
    """Settings from YAML. Raises SettingsError with one sentence for each mistake."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"The settings are not valid YAML: {error}".replace("\n", " ")) from error
    return parse_settings(data)


def read_settings(path: Path) -> RunSettings:
    """Settings from a YAML file. Raises SettingsError, naming the file, if it cannot be read or used."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return from_yaml(text)
    except SettingsError as error:
        raise SettingsError(f"{path}:\n{error}") from error
