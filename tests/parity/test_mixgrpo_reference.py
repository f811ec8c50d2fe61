"""Palate's mathematics against figures computed with the published MixGRPO implementation (mixgrpo_reference.json).

Kernels there ran in float64, DPM-Solver++ trajectories in float32. Where the published code is at fault (a moving
window that shrinks) the comparison stops; the fault's regression test is in tests/engine/sampling/test_window.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.sampling.schedule import flow_sigmas
from engine.sampling.sde import DanceSde, FlowSde, clean_prediction, log_prob
from engine.sampling.solvers import DpmSolver
from engine.sampling.window import window_start
from engine.settings import WindowSettings

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "mixgrpo_reference.json").read_text())
SIGMAS: list[float] = REFERENCE["sigmas"]


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LATENTS, VELOCITY, NEXT = (_tensor(REFERENCE[key]) for key in ("latents", "velocity", "next_latents"))

# The published code computes ½·log 2π in float32 whatever the precision: 1.6e-8 too much in every log-probability.
PUBLISHED_ROUNDING = 0.5 * math.log(2 * math.pi) - float(torch.tensor(2 * math.pi, dtype=torch.float32).sqrt().log())


def _close(actual: Tensor, expected: Any, relative: float = 1e-9) -> None:
    torch.testing.assert_close(actual.double(), _tensor(expected), rtol=relative, atol=1e-12)


def _name(case: dict[str, Any]) -> str:
    return "-".join(str(value) for value in case.values() if isinstance(value, str | int | float))


def test_the_time_grid():
    _close(flow_sigmas(REFERENCE["num_steps"], REFERENCE["time_shift"]), SIGMAS)


@pytest.mark.parametrize("case", REFERENCE["flow_sde"], ids=_name)
def test_flow_sde(case):
    sigma, sigma_next = SIGMAS[case["step"] : case["step"] + 2]
    transition = FlowSde(case["eta"]).transition(LATENTS, VELOCITY, sigma, sigma_next, SIGMAS[1])
    _close(transition.mean, case["mean"])
    _close(transition.std, case["std"])
    _close(log_prob(transition, NEXT) + PUBLISHED_ROUNDING, case["log_prob"])
    _close(clean_prediction(LATENTS, VELOCITY, sigma), case["clean"])


@pytest.mark.parametrize("case", REFERENCE["dance_sde"], ids=_name)
def test_dance_sde(case):
    sigma, sigma_next = SIGMAS[case["step"] : case["step"] + 2]
    transition = DanceSde(case["eta"]).transition(LATENTS, VELOCITY, sigma, sigma_next, SIGMAS[1])
    _close(transition.mean, case["mean"])
    _close(transition.std, case["std"])


@pytest.mark.parametrize("case", REFERENCE["ode_dpm"], ids=_name)
def test_dpm_solver(case):
    """The reference ran on v(x, σ) = tanh(x)·(1−σ) + 0.3·flip(x)·σ, from the latents, on the shifted grid."""

    def velocity(latents: Tensor, sigma: float) -> Tensor:
        return latents.tanh() * (1 - sigma) + 0.3 * latents.flip(-1) * sigma

    sigmas = tuple(flow_sigmas(case["num_steps"], REFERENCE["time_shift"]).tolist())
    solver = DpmSolver(case["order"], case["variant"])
    final = solver.integrate(velocity, LATENTS.float(), sigmas)
    torch.testing.assert_close(final.double(), _tensor(case["final"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", REFERENCE["windows"], ids=lambda case: _name(case["settings"]))
def test_windows_while_the_published_ones_are_full(case):
    published = case["settings"]
    stride = published["prog_overlap_step"]
    window = WindowSettings(
        size=published["group_size"],
        # The published code freezes its window by a progressive one that moves by 0 steps.
        strategy=published["sample_strategy"] if stride else "frozen",
        stride=stride or 1,
        iterations_per_position=published.get("max_iters_per_group", published["iters_per_group"]),
        min_iterations_per_position=published.get("min_iters_per_group", 1),
    )
    num_full = next((i for i, length in enumerate(case["lengths"]) if length < window.size), len(case["lengths"]))
    assert num_full > 80, "the reference covers most of a cycle"
    num_steps = published["max_timesteps"] + 2
    ours = [window_start(window, num_steps, 0, iteration) for iteration in range(num_full)]
    assert ours == case["starts"][:num_full]
