from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.objective.advantage import balanced_splits, best_and_worst, group_advantages, group_spreads

NAN = math.nan


def _scores(*groups: list[float]) -> Tensor:
    return torch.tensor(groups, dtype=torch.float64)


def _standardised(scores: list[float]) -> list[float]:
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    return [(score - mean) / (deviation + 1e-8) for score in scores]


def _one(scores: Tensor, clip: float = 5.0) -> Tensor:
    return group_advantages({"a": scores}, {"a": 1.0}, "advantage", clip)


def _near(actual: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, _scores(*expected), rtol=1e-9, atol=1e-9)


def test_each_group_is_standardised_by_its_own_mean_and_unbiased_std():
    """Fault 8 of the published code: only prompt 0 of a batch is handled."""
    first, second = [1.0, 2.0, 4.0, 9.0], [-300.0, -200.0, -250.0, -250.0]
    _near(_one(_scores(first, second)), [_standardised(first), _standardised(second)])


def test_the_two_mixes():
    sharp, soft = [0.0, 1.0, 1.0, 0.0], [300.0, 100.0, 200.0, 500.0]
    scores = {"sharp": _scores(sharp), "soft": _scores(soft)}
    weights = {"sharp": 3.0, "soft": 1.0}
    each = zip(_standardised(sharp), _standardised(soft), strict=True)
    _near(group_advantages(scores, weights, "advantage", 5.0), [[0.75 * a + 0.25 * b for a, b in each]])
    summed = [0.75 * a + 0.25 * b for a, b in zip(sharp, soft, strict=True)]
    _near(group_advantages(scores, weights, "reward", 5.0), [_standardised(summed)])


@given(st.floats(0.01, 100.0))
def test_weights_count_by_their_shares(factor):
    scores = {"a": _scores([1.0, 2.0, 4.0]), "b": _scores([3.0, 1.0, 1.0])}
    for mix in ("advantage", "reward"):
        once = group_advantages(scores, {"a": 1.0, "b": 2.0}, mix, 5.0)
        torch.testing.assert_close(group_advantages(scores, {"a": factor, "b": 2 * factor}, mix, 5.0), once)


def test_the_spread_is_what_the_advantage_divides_by():
    first, second = [1.0, 2.0, 4.0, 9.0], [-300.0, -200.0, -250.0, -250.0]
    scores = _scores(first, second)
    spread = group_spreads({"a": scores})["a"]
    assert spread == pytest.approx((statistics.stdev(first) + statistics.stdev(second)) / 2, rel=1e-12)
    alone = _scores(first)
    divided = _one(alone) * group_spreads({"a": alone})["a"]
    torch.testing.assert_close(divided, alone - alone.mean(), rtol=1e-6, atol=1e-9)


def test_failed_scores_have_no_spread():
    failed = _scores([1.0, NAN, 4.0, math.inf], [5.0, NAN, NAN, NAN])
    spreads = group_spreads({"a": failed, "gone": _scores([NAN, NAN], [1.0, NAN])})
    assert spreads == {"a": pytest.approx(statistics.stdev([1.0, 4.0]), rel=1e-12)}
    assert group_spreads({"alike": _scores([0.5, 0.5, 0.5])}) == {"alike": 0.0}


def test_a_reward_of_weight_zero_is_measured_and_not_trained_on():
    scores = {"a": _scores([1.0, 2.0, 4.0]), "watched": _scores([NAN, 7.0, NAN])}
    advantages = group_advantages(scores, {"a": 1.0, "watched": 0.0}, "advantage", 5.0)
    assert torch.equal(advantages, _one(scores["a"]))


@pytest.mark.parametrize("mix", ["advantage", "reward"])
@pytest.mark.parametrize("failure", [NAN, math.inf, -math.inf])
def test_a_failed_score_leaves_its_groups_statistics(mix, failure):
    """Fault 5 of the published code: a reward that failed scores 0.0 and enters the advantages."""
    scores = {
        "a": _scores([1.0, failure, 4.0, 9.0], [5.0, 6.0, 7.0, 9.0]),
        "b": _scores([2.0, 2.5, 0.0, 1.0], [2.0, 2.5, 0.0, 1.0]),
    }
    advantages = group_advantages(scores, {"a": 1.0, "b": 1.0}, mix, 5.0)
    without = {"a": _scores([1.0, 4.0, 9.0]), "b": _scores([2.0, 0.0, 1.0])}
    expected = group_advantages(without, {"a": 1.0, "b": 1.0}, mix, 5.0)
    torch.testing.assert_close(advantages[0, [0, 2, 3]], expected[0])
    assert advantages[0, 1] == 0.0
    whole = {name: values[1:] for name, values in scores.items()}
    torch.testing.assert_close(advantages[1:], group_advantages(whole, {"a": 1.0, "b": 1.0}, mix, 5.0))


@pytest.mark.parametrize("group", [[NAN, NAN, NAN], [NAN, 3.0, NAN], [3.0, NAN, 3.0]])
def test_a_group_with_nothing_to_compare_has_no_advantage(group):
    assert torch.equal(_one(_scores(group)), torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.1, -437.25, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_equal_within_float_noise_have_no_advantage(value, dtype):
    scores = torch.full((2, 6), value, dtype=dtype)
    scores[:, ::2] = torch.nextafter(scores[:, ::2].float(), torch.tensor(math.inf)).to(dtype)
    if value == 0.0:
        scores.zero_()
    for mix in ("advantage", "reward"):
        both = group_advantages({"a": scores, "b": -scores}, {"a": 1.0, "b": 0.5}, mix, 5.0)
        assert torch.equal(both, torch.zeros(2, 6, dtype=dtype))


def test_sums_that_cancel_to_float_noise_have_no_advantage():
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.7]], dtype=torch.float32)
    opposite = torch.nextafter(1.0 - scores, torch.tensor(math.inf))
    advantages = group_advantages({"a": scores, "b": opposite}, {"a": 1.0, "b": 1.0}, "reward", 5.0)
    assert torch.equal(advantages, torch.zeros(1, 4))


def test_small_true_differences_are_no_noise():
    expected = _standardised([0.2800, 0.2801, 0.2803])
    _near(_one(_scores([0.2800, 0.2801, 0.2803])), [expected])


def test_advantages_are_clipped_after_the_sum():
    group = [0.0] * 29 + [1.0]
    advantages = _one(_scores(group), clip=2.0)
    assert float(_one(_scores(group), clip=99.0)[0, -1]) > 5
    assert float(advantages[0, -1]) == 2.0
    torch.testing.assert_close(advantages[0, :-1], _one(_scores(group))[0, :-1])


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12), st.floats(-50, 50), st.floats(0.1, 50))
def test_advantages_do_not_change_when_scores_are_shifted_or_scaled(group, shift, scale):
    scores = _scores(group)
    if float(scores.max() - scores.min()) < 1e-2:
        return
    advantages = _one(scores)
    torch.testing.assert_close(_one(scores * scale + shift), advantages, rtol=1e-4, atol=1e-5)
    assert float(advantages.sum().abs()) < 1e-9 or float(advantages.abs().max()) == 5.0


def test_the_dtype_is_the_scores_or_float32():
    for dtype, expected in [(torch.float16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]:
        assert _one(torch.tensor([[1.0, 2.0]], dtype=dtype)).dtype == expected


def test_mistakes_are_refused_in_a_sentence():
    scores = {"a": _scores([1.0, 2.0])}
    with pytest.raises(ValueError, match="nothing to learn"):
        group_advantages(scores, {"a": 0.0}, "advantage", 5.0)
    with pytest.raises(ValueError, match="no scores of b"):
        group_advantages(scores, {"a": 1.0, "b": 1.0}, "advantage", 5.0)


ADVANTAGES = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.3, 4.0]), min_size=1, max_size=60)


@given(ADVANTAGES, st.data(), st.integers(0, 1000))
def test_every_sample_is_in_one_update_and_updates_are_balanced(values, data, seed):
    num_updates = data.draw(st.integers(1, len(values)))
    advantages = torch.tensor(values)
    splits = balanced_splits(advantages, num_updates, torch.Generator().manual_seed(seed))
    assert len(splits) == num_updates
    assert all(split.dtype == torch.long for split in splits)
    assert sorted(torch.cat(splits).tolist()) == list(range(len(values)))
    for wanted in (advantages > 0, advantages < 0, torch.ones_like(advantages, dtype=torch.bool)):
        counts = [int(wanted[split].sum()) for split in splits]
        assert max(counts) - min(counts) <= 1


def test_splits_are_drawn_from_the_generator():
    advantages = torch.linspace(-1, 1, 48)
    first, again, other = (
        balanced_splits(advantages, 4, torch.Generator().manual_seed(seed))[0].tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert sorted(first) != sorted(other)


@pytest.mark.parametrize("num_updates", [0, 4])
def test_more_updates_than_samples_are_refused(num_updates):
    with pytest.raises(ValueError, match="3 samples cannot be split"):
        balanced_splits(torch.ones(3), num_updates, torch.Generator())


def test_a_global_std_is_that_of_all_rewards_together():
    first, second = [1.0, 2.0, 6.0], [10.0, 30.0, 20.0]
    spread = statistics.stdev(first + second) + 1e-8
    expected = [[(score - statistics.mean(group)) / spread for score in group] for group in (first, second)]
    _near(group_advantages({"a": _scores(first, second)}, {"a": 1.0}, "advantage", 5.0, std="global"), expected)


def test_trimmed_statistics_leave_out_as_many_at_either_end():
    group = [5.0, 1.0, 2.0, 100.0, 4.0, 3.0, NAN]
    # Six valid scores: ⌊0.2·6⌋ = 1 dropped at either end, and still given its advantage.
    kept = [5.0, 2.0, 4.0, 3.0]
    mean, spread = statistics.mean(kept), statistics.stdev(kept) + 1e-8
    expected = [(score - mean) / spread for score in group[:6]] + [0.0]
    _near(group_advantages({"a": _scores(group)}, {"a": 1.0}, "advantage", 99.0, trim=0.2), [expected])


def test_a_group_that_trimming_would_leave_equal_is_not_trimmed():
    group = [0.0, 0.0, 0.0, 0.0, 1.0]
    _near(group_advantages({"a": _scores(group)}, {"a": 1.0}, "advantage", 5.0, trim=0.2), [_standardised(group)])


def test_the_best_and_the_worst_of_each_group():
    advantages = _scores([0.0, 3.0, -1.0, 2.0, -2.0], [1.0, 1.0, 1.0, -3.0, 0.0])
    assert best_and_worst(advantages, 1).tolist() == [1, 4, 5, 8]
    assert best_and_worst(advantages, 2).tolist() == [1, 2, 3, 4, 5, 6, 8, 9]
    assert best_and_worst(advantages, 0).tolist() == list(range(10))
    with pytest.raises(ValueError, match="no 3 best and 3 worst"):
        best_and_worst(advantages, 3)


def test_a_gated_image_counts_as_its_groups_lowest_by_every_reward():
    gated = {"a": _scores([1.0, 9.0, 3.0, 5.0]), "b": _scores([8.0, 7.0, 2.0, 4.0])}
    safe = _scores([0.0, -0.9, 0.0, -0.4])
    # The second image is out: it takes the lowest score of its group by each.
    lowered = {"a": _scores([1.0, 1.0, 3.0, 5.0]), "b": _scores([8.0, 2.0, 2.0, 4.0])}
    weights = {"a": 1.0, "b": 2.0, "safe": 0.0}
    for mix in ("advantage", "reward"):
        expected = group_advantages(lowered, weights, mix, 5.0)
        actual = group_advantages(gated | {"safe": safe}, weights, mix, 5.0, gates={"safe": -0.5})
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_gate_that_failed_leaves_its_image_out_and_a_group_that_is_all_out_is_not_trained():
    scores = {"a": _scores([1.0, 9.0, 3.0], [4.0, 5.0, 6.0]), "safe": _scores([0.0, NAN, 0.0], [-1.0, -1.0, -1.0])}
    actual = group_advantages(scores, {"a": 1.0, "safe": 0.0}, "advantage", 5.0, gates={"safe": -0.5})
    first, last = _standardised([1.0, 3.0])
    _near(actual, [[first, 0.0, last], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="no scores of safe"):
        group_advantages({"a": scores["a"]}, {"a": 1.0}, "advantage", 5.0, gates={"safe": 0.0})
