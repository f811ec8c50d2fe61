"""RunSettings: everything a run is told, typed, with units, and free of torch.

The workbench draws its forms from these fields, the database stores them as JSON, the engine runs them, and
``palate train`` reads them from YAML. Unknown keys are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

ModelName = Literal["builtin", "flux"]
RewardName = Literal["composition", "vividness", "compressibility", "incompressibility"]
KernelName = Literal["flow_sde", "dance_sde", "cps"]
Method = Literal["grpo", "nft"]
WindowStrategy = Literal["progressive", "frozen", "random", "decay", "exp_decay"]
SolverName = Literal["dpmsolver++", "unipc", "deis"]
SolverType = Literal["midpoint", "heun", "bh1", "bh2"]
SOLVER_TYPES: dict[SolverName, tuple[SolverType, ...]] = {
    "dpmsolver++": ("midpoint", "heun"), "unipc": ("bh2", "bh1"), "deis": (),
}  # fmt: skip

PositiveInt = Annotated[int, Field(ge=1)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(Section):
    """Which text-to-image model is tuned, and in what precision."""

    name: ModelName = Field("builtin", description="Model family.")
    folder: str | None = Field(
        None,
        description="A diffusers pipeline folder of that family to start from; empty = the built-in model's own "
        "weights (the other families have none).",
    )
    resolution: int | None = Field(
        None, ge=16, le=4096, multiple_of=16,
        description="Pixels a side of the images, a multiple of 16; empty = what the model's pipeline draws.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision of the transformer's arithmetic, and of FLUX's frozen weights; log-probabilities and "
        "trained weights are always float32.",
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

    size: PositiveInt = Field(4, description="Steps in the window, W; T−1 = every step but the last.")
    strategy: WindowStrategy = Field("progressive", description="How the window moves over iterations.")
    start: int = Field(0, ge=0, description="First position l₀.")
    last: int | None = Field(
        None, ge=0, description="Last position; empty = T−2−W. The progressive window wraps to `start` past it."
    )
    trained_fraction: float = Field(
        1.0, gt=0.0, le=1.0,
        description="Share of the window's steps trained on, drawn anew for each image; 1 = all (DanceGRPO: 0.6).",
    )
    stride: PositiveInt = Field(1, description="Steps the progressive window moves at a time.")
    iterations_per_position: PositiveInt = Field(
        25, description="Iterations τ spent at a position (at most, for decay)."
    )
    min_iterations_per_position: PositiveInt = Field(1, description="Fewest iterations at a position (decay only).")


class FlashSettings(Section):
    """MixGRPO-Flash: fewer, higher-order steps after the window."""

    enabled: bool = Field(False, description="Re-grid the steps after the window and solve them by `solver`.")
    ratio: float = Field(0.4, gt=0.0, le=1.0, description="Steps kept after the window, as a share.")
    solver: SolverName = Field(
        "dpmsolver++", description="Multistep solver, one forward a step; deis alone starts cold, at order 1."
    )
    order: Literal[1, 2, 3] = Field(2, description="Order of the solver; unipc's corrector adds one.")
    solver_type: SolverType | None = Field(
        None,
        description="Variant: midpoint or heun for dpmsolver++, bh2 or bh1 for unipc; empty = the first of the two.",
    )

    @model_validator(mode="after")
    def _variant_of_its_solver(self) -> Self:
        variants = SOLVER_TYPES[self.solver]
        if self.solver_type is not None and self.solver_type not in variants:
            remedy = f"choose {' or '.join(variants)}, or leave it empty" if variants else "leave it empty"
            raise ValueError(f"{self.solver} has no variant {self.solver_type} (solver_type); {remedy}")
        return self


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
    max_failed_share: UnitInterval = Field(0.5, description="Alarm where more of an iteration's scores fail; it stops.")


class ComputeSettings(Section):
    """Device and batching."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU if there is one.")
    micro_batch: PositiveInt = Field(48, description="Most images in one forward pass.")
    num_threads: int = Field(0, ge=0, description="CPU threads of a process; 0 = all cores, shared by the processes.")
    num_processes: int = Field(
        1, ge=1, le=64,
        description="Processes on this machine that train together, on GPUs one each; each takes whole prompts.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description='With "fsdp" a process holds a part of all weights: full fine-tuning of what does not fit a GPU.',
    )
    embedding_cache: bool = Field(
        True,
        description="Encode each prompt once, keep its embeddings in your cache folder, and free the text encoders.",
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
        self._check_images()
        self._check_processes()
        if self.method == "nft":
            self._check_nft()
        return self

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
        if self.tuning.method == "lora":
            raise ValueError(
                'compute.sharding "fsdp" is for tuning.method "full", where all weights are trained; use "none".'
            )
        if num_prompts % num_processes:
            raise ValueError(
                f'With compute.sharding "fsdp" every process needs equally many prompts: grpo.prompts_per_iteration '
                f"({num_prompts}) must be a multiple of compute.num_processes ({num_processes})."
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

    @property
    def last_window_position(self) -> int:
        """The last position l the window may take: `window.last`, or that of `last_position_of`."""
        limit = last_position_of(self.window.size, self.sampling.num_steps)
        return limit if self.window.last is None else self.window.last

    def digest(self) -> str:
        """Sixteen hex digits that name these settings (sha256 of their sorted JSON)."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The settings as YAML that `from_yaml` reads back to equal settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def last_position_of(window_size: int, num_steps: int) -> int:
    """The last position l a window may take: T−2−W (MixGRPO, arXiv 2507.21802); 0 where it has every step but one."""
    return max(0, num_steps - 2 - window_size)
