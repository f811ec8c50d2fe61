from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.schedule import flow_sigmas, num_tail_steps, regrid_tail, tail_sigmas

STEPS = st.integers(1, 60)
SHIFTS = st.floats(0.05, 20.0)


def test_a_grid_by_hand():
    # s = 1, 3/4, 1/2, 1/4, 0 and σ = 2s/(1+s).
    expected = torch.tensor([1, 6 / 7, 2 / 3, 2 / 5, 0], dtype=torch.float64)
    torch.testing.assert_close(flow_sigmas(4, 2.0), expected, rtol=1e-15, atol=0)


@given(STEPS, SHIFTS)
def test_a_grid_falls_from_exactly_one_to_exactly_zero(num_steps, shift):
    sigmas = flow_sigmas(num_steps, shift)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (num_steps + 1,)
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert (sigmas.diff() < 0).all()


@given(STEPS, SHIFTS)
def test_the_shift_multiplies_the_odds(num_steps, shift):
    plain, shifted = flow_sigmas(num_steps, 1.0)[1:-1], flow_sigmas(num_steps, shift)[1:-1]
    torch.testing.assert_close(shifted / (1 - shifted), shift * plain / (1 - plain), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("steps_left", "ratio", "expected"),
    [(21, 0.4, 9), (5, 0.4, 2), (1, 0.4, 1), (2, 0.2, 1), (21, 0.2, 5), (10, 1.0, 10), (20, 0.55, 11), (25, 0.28, 7)],
)
def test_steps_of_the_tail(steps_left, ratio, expected):
    assert num_tail_steps(steps_left, ratio) == expected


def test_a_tail_by_hand():
    # T = 10 from s = 1/2 in ⌈0.5·5⌉ = 3 steps: s = 1/2, 1/3, 1/6, 0; σ = 3s/(1+2s).
    expected = torch.tensor([3 / 4, 3 / 5, 3 / 8, 0], dtype=torch.float64)
    torch.testing.assert_close(tail_sigmas(10, 3.0, 5, 0.5), expected, rtol=1e-15, atol=1e-16)


@given(st.integers(2, 40), SHIFTS, st.floats(0.01, 1.0), st.data())
def test_every_tail_reaches_zero_in_its_number_of_steps(num_steps, shift, ratio, data):
    """Fault 2 of the published code: n points, so n−1 steps, and for n = 1 the image stays noisy."""
    start = data.draw(st.integers(0, num_steps - 1))
    tail = tail_sigmas(num_steps, shift, start, ratio)
    assert len(tail) == num_tail_steps(num_steps - start, ratio) + 1 >= 2
    assert tail[-1] == 0.0
    assert tail[0] == flow_sigmas(num_steps, shift)[start]
    assert (tail.diff() < 0).all()


def test_a_tail_that_keeps_every_step_is_the_rest_of_the_grid():
    torch.testing.assert_close(tail_sigmas(25, 3.0, 7, 1.0), flow_sigmas(25, 3.0)[7:], rtol=1e-13, atol=0)


@given(st.integers(2, 40), SHIFTS, st.floats(0.05, 1.0), st.data())
def test_regridding_a_known_grid_gives_its_tail(num_steps, shift, ratio, data):
    start = data.draw(st.integers(1, num_steps - 1))
    expected = tail_sigmas(num_steps, shift, start, ratio)
    actual = regrid_tail(flow_sigmas(num_steps, shift), start, len(expected) - 1)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 999), min_size=2, max_size=30, unique=True), st.booleans(), st.data())
def test_regridding_any_falling_grid_falls_between_its_ends(inner, from_one, data):
    thousandths = [*([1000] if from_one else []), *sorted(inner, reverse=True), 0]
    sigmas = torch.tensor(thousandths, dtype=torch.float64) / 1000
    start = data.draw(st.integers(0, len(sigmas) - 2))
    num_steps = data.draw(st.integers(1, 30))
    tail = regrid_tail(sigmas, start, num_steps)
    assert tail.shape == (num_steps + 1,)
    assert (tail[0], tail[-1]) == (sigmas[start], 0.0)
    assert (tail.diff() < 0).all()


def test_regridding_with_as_many_steps_keeps_the_grid():
    sigmas = torch.tensor([1.0, 0.97, 0.8, 0.5, 0.45, 0.1, 0.0])
    torch.testing.assert_close(regrid_tail(sigmas, 2, 4), sigmas[2:].double(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_a_shift_that_is_no_positive_number_is_refused(shift):
    with pytest.raises(ValueError, match="time shift must be a positive number"):
        flow_sigmas(10, shift)


@pytest.mark.parametrize(
    "call",
    [
        lambda: flow_sigmas(0, 3.0),
        lambda: tail_sigmas(10, 3.0, 10, 0.5),
        lambda: tail_sigmas(10, 3.0, -1, 0.5),
        lambda: regrid_tail(flow_sigmas(10, 3.0), 10, 2),
        lambda: regrid_tail(flow_sigmas(10, 3.0), 5, 0),
    ],
)
def test_grids_without_steps_are_refused(call):
    with pytest.raises(ValueError, match=r"at least one step|cannot start at step"):
        call()
