from __future__ import annotations

import math
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.window import last_position, position_shares, window_start
from engine.settings import WindowSettings, WindowStrategy

STRATEGIES = get_args(WindowStrategy)


@st.composite
def windows(draw):
    num_steps = draw(st.integers(3, 40))
    size = draw(st.integers(1, num_steps - 2))
    limit = num_steps - 2 - size
    start = draw(st.integers(0, limit))
    return num_steps, WindowSettings(
        size=size,
        strategy=draw(st.sampled_from(STRATEGIES)),
        start=start,
        last=draw(st.none() | st.integers(start, limit)),
        stride=draw(st.integers(1, 6)),
        iterations_per_position=draw(st.integers(1, 30)),
        min_iterations_per_position=draw(st.integers(1, 40)),
    )


@given(windows(), st.integers(0, 2**31 - 1), st.integers(0, 1_000_000))
def test_every_window_is_full_and_leaves_the_last_two_steps(case, seed, iteration):
    """Fault 1 of the published code: the moving window shrinks to 3, 2, 1, then 0 steps before it wraps."""
    num_steps, window = case
    start = window_start(window, num_steps, seed, iteration)
    assert window.start <= start <= last_position(window, num_steps)
    assert start + window.size <= num_steps - 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_published_recipe_never_shrinks(strategy):
    window = WindowSettings(strategy=strategy, iterations_per_position=5)
    starts = {window_start(window, 25, 0, iteration) for iteration in range(1000)}
    assert starts == ({0} if strategy == "frozen" else set(range(20)))


def test_progressive_moves_by_its_stride_and_wraps_to_its_start():
    window = WindowSettings(size=2, start=1, stride=3, iterations_per_position=2)
    # T = 12: the last position is 8, so 1, 4, 7, and back.
    starts = [window_start(window, 12, 0, iteration) for iteration in range(14)]
    assert starts == [1, 1, 4, 4, 7, 7, 1, 1, 4, 4, 7, 7, 1, 1]


def test_progressive_stays_within_a_last_position():
    window = WindowSettings(last=1, iterations_per_position=1)
    assert [window_start(window, 25, 0, iteration) for iteration in range(5)] == [0, 1, 0, 1, 0]


def test_decay_gives_later_positions_fewer_iterations():
    window = WindowSettings(strategy="decay", iterations_per_position=10, min_iterations_per_position=2)
    # T = 25: int(10·(1−l/23) + 2·l/23) at l = 0 … 19, then the same again.
    dwells = [int((10 * (23 - position) + 2 * position) / 23) for position in range(20)]
    cycle = sum(dwells)
    counts = Counter(window_start(window, 25, 0, iteration) for iteration in range(2 * cycle))
    assert [counts[position] for position in range(20)] == [2 * dwell for dwell in dwells]
    assert dwells[0] == 10 and dwells[-1] == 3


def test_exp_decay_spends_fewer_iterations_past_position_thirteen():
    window = WindowSettings(strategy="exp_decay", iterations_per_position=25)
    dwells = [25] * 14 + [math.ceil(25 * math.exp(-0.1 * k)) for k in range(1, 7)]
    assert dwells[14:] == [23, 21, 19, 17, 16, 14]
    counts = Counter(window_start(window, 25, 0, iteration) for iteration in range(sum(dwells)))
    assert [counts[position] for position in range(20)] == dwells


def test_random_is_uniform_and_its_draws_depend_on_seed_and_iteration_alone():
    window = WindowSettings(strategy="random", start=2, last=6)
    starts = [window_start(window, 25, 7, iteration) for iteration in range(2000)]
    assert starts == [window_start(window, 25, 7, iteration) for iteration in range(2000)]
    counts = Counter(starts)
    assert set(counts) == {2, 3, 4, 5, 6}
    # 400 expected, standard deviation 18.
    assert all(310 < count < 490 for count in counts.values())
    assert starts != [window_start(window, 25, 8, iteration) for iteration in range(2000)]


@pytest.mark.parametrize(
    "window",
    [WindowSettings(size=10), WindowSettings(start=5), WindowSettings(last=5), WindowSettings(start=2, last=1)],
)
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(ValueError, match="does not fit 10 sampling steps"):
        window_start(window, 10, 0, 0)


def test_a_window_may_have_every_step_but_the_last():
    assert {window_start(WindowSettings(size=24), 25, 0, iteration) for iteration in range(40)} == {0}
    assert window_start(WindowSettings(size=1, strategy="decay"), 2, 0, 5) == 0


@given(windows())
def test_the_shares_of_positions_are_those_of_a_whole_cycle(case):
    num_steps, window = case
    shares = position_shares(window, num_steps)
    assert sum(shares.values()) == pytest.approx(1.0)
    if window.strategy in ("random", "frozen"):
        return
    # A cycle ends where the window is back at its first position after having left it, or never leaves it.
    starts = [window_start(window, num_steps, 0, iteration) for iteration in range(3000)]
    if len(shares) > 1:
        wraps = [i for i in range(1, 3000) if starts[i] == window.start != starts[i - 1]]
        if not wraps:
            return
        starts = starts[: wraps[0]]
    counts = Counter(starts)
    assert {position: counts[position] / len(starts) for position in shares} == pytest.approx(shares)
