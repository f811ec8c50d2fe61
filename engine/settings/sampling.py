"""How images are drawn: the grid, the kernel, the window, the Flash tail."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.settings.section import PositiveInt, Section

KernelName = Literal["flow_sde", "dance_sde", "cps"]
WindowStrategy = Literal["progressive", "frozen", "random", "decay", "exp_decay"]
SolverName = Literal["dpmsolver++", "unipc", "deis"]
SolverType = Literal["midpoint", "heun", "bh1", "bh2"]
SOLVER_TYPES: dict[SolverName, tuple[SolverType, ...]] = {
    "dpmsolver++": ("midpoint", "heun"), "unipc": ("bh2", "bh1"), "deis": (),
}  # fmt: skip


class SamplingSettings(Section):
    """How training images are drawn."""

    num_steps: int = Field(25, ge=2, le=200, description="Denoising steps T.")
    shift: Annotated[float, Field(gt=0.0)] | Literal["model"] = Field(
        3.0,
        description='Time shift of the σ grid (maths: σ = shift·s/(1+(shift−1)s)), or "model" for the model\'s own.',
    )
    guidance_scale: float = Field(
        1.0, ge=1.0, le=30.0,
        description="Guidance: classifier-free (1 = none, at half the cost), or the input of a model distilled for it.",
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


def last_position_of(window_size: int, num_steps: int) -> int:
    """The last position l a window may take: T−2−W (MixGRPO, arXiv 2507.21802); 0 where it has every step but one."""
    return max(0, num_steps - 2 - window_size)
