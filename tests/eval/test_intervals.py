"""Intervals against scipy's, against simulation, and by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from eval import intervals


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (310, 1000)])
def test_proportions_have_wilsons_interval(successes: int, n: int) -> None:
    found = intervals.proportion(successes, n)
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (found.value, found.n) == (successes / n, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_has_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 4.5]
    found = intervals.ratio(values, [1.0] * 4)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), *expected))


def test_a_ratio_is_the_sum_of_parts_over_the_sum_of_wholes() -> None:
    assert intervals.ratio([1, 6], [1, 2]).value == pytest.approx(7 / 3)


def test_a_ratios_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        wholes = draw.integers(1, 20, 200).astype(float)
        found = intervals.ratio((wholes * 2 + draw.normal(0, wholes)).tolist(), wholes.tolist())
        hits += found.low < 2 < found.high
    assert 930 <= hits <= 967


def test_copies_in_a_cluster_do_not_narrow_the_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    alone = intervals.ratio(values, [1.0] * 5, range(5))
    copied = intervals.ratio(values * 3, [1.0] * 15, [*range(5)] * 3)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))


def test_a_share_of_clusters_that_agree_is_that_of_the_clusters() -> None:
    right = [1.0, 0, 1, 1, 0, 1, 1, 1] * 25
    alone = intervals.proportion(sum(right), len(right))
    copied = intervals.clustered_proportion(right * 4, [*range(len(right))] * 4)
    assert (copied.value, copied.n) == (alone.value, 4 * len(right))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=2e-3)  # t is wider than z


def test_clusters_that_are_all_right_leave_a_doubt() -> None:
    found, alone = intervals.clustered_proportion([1.0] * 12, [*range(4)] * 3), intervals.proportion(4, 4)
    assert (found.low, found.high) == (alone.low, 1.0)


def test_a_clustered_shares_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        share_C = draw.beta(3.6, 0.4, 40)  # mean 0.9, and clusters differ
        found = intervals.clustered_proportion(
            draw.binomial(1, np.repeat(share_C, 5)).astype(float).tolist(), np.repeat(range(40), 5).tolist()
        )
        hits += found.low <= 0.9 <= found.high
    assert 925 <= hits <= 975


def test_the_error_of_a_mean_over_sets_adds_up_that_of_each() -> None:
    sets = [[0.1, 0.7, 0.4], [3.0, 1.0, 2.5, 2.0]]
    found = intervals.over_sets([(values, [1.0] * len(values), None) for values in sets])
    variances = [stats.sem(values) ** 2 / 4 for values in sets]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    assert (found.value, found.n) == (pytest.approx((0.4 + 2.125) / 2), 7)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5)
    one = intervals.over_sets([(sets[0], [1.0] * 3, None), ([2.0], [1.0], None)])
    assert (one.low, one.high) == (-np.inf, np.inf)  # of the second's noise nothing is known


@pytest.mark.parametrize(("num_sets", "size", "share"), [(57, 5, 0.9), (34, 20, 0.95), (40, 4, 0.22)])
def test_of_the_intervals_of_shares_over_small_sets_19_in_20_hold(num_sets: int, size: int, share: float) -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        right = (generator.random((num_sets, size)) < share).astype(float).tolist()
        found = intervals.over_sets([(own, [1.0] * size, None) for own in right])
        hits += found.low <= share <= found.high
    assert 460 <= hits <= 490


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert intervals.mcnemar(3, 9) == pytest.approx(stats.binomtest(3, 12).pvalue)
    assert intervals.mcnemar(0, 0) == 1.0


def test_a_paired_difference_of_shares_uses_mcnemar() -> None:
    first, second = [1.0, 1, 0, 0, 0, 0, 0, 1], [1.0, 1, 1, 1, 1, 1, 1, 0]
    found = intervals.paired_difference(first, second)
    assert (found.value, found.n) == (0.5, 8)
    assert found.p == pytest.approx(intervals.mcnemar(1, 5))


def test_a_paired_difference_of_numbers_is_the_paired_t_test() -> None:
    first, second = [1.0, 2.5, 3.0, 0.2], [1.4, 2.0, 4.5, 1.2]
    expected = stats.ttest_rel(second, first)
    found = intervals.paired_difference(first, second)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_few_differences_that_are_all_the_same_are_no_certainty() -> None:
    found = intervals.paired_difference([0.0, 0.25, 1.0], [0.5, 0.75, 1.5])
    assert (found.value, found.low, found.high) == (0.5, -np.inf, np.inf)
    assert found.p == stats.binomtest(3, 3).pvalue
    same = intervals.paired_difference([0.0, 0.25, 1.0], [0.0, 0.25, 1.0])
    assert (same.low, same.high, same.p) == (0, 0, 1)


def test_in_clusters_right_and_wrong_is_no_independent_coin() -> None:
    # Every answer stands four times: McNemar would take each copy for a new one.
    first, second, cluster = [1.0, 0, 0, 0] * 4, [1.0, 1, 1, 0] * 4, [*range(4)] * 4
    found = intervals.paired_difference(first, second, cluster)
    assert found.p == pytest.approx(stats.ttest_rel(second[:4], first[:4]).pvalue)


def test_clusters_that_even_out_are_no_more_than_their_items() -> None:
    right, cluster = [1.0, 0.0] * 9 + [1.0, 1.0], np.repeat(range(10), 2).tolist()
    found, alone = intervals.clustered_proportion(right, cluster), intervals.proportion(11, 20)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_holm_by_hand() -> None:
    # In order 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.5.
    assert intervals.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])


def test_a_detectable_difference_is_seen_four_times_in_five() -> None:
    n, share = 500, 0.6
    step = intervals.detectable(intervals.proportion(share * n, n))
    draw = np.random.default_rng(2)
    seen = 0
    for _ in range(1000):
        first, second = draw.binomial(n, share), draw.binomial(n, share + step)
        z = (second - first) / np.sqrt(n * (share * (1 - share) + (share + step) * (1 - share - step)))
        seen += abs(z) > 1.96
    assert 760 <= seen <= 850


def test_an_interval_that_is_not_known_is_null_in_json_and_left_out_in_text() -> None:
    alone = intervals.as_json(intervals.paired_difference([1.0], [3.0]))
    assert json.loads(json.dumps(alone, allow_nan=False)) == {"value": 2.0, "low": None, "high": None, "n": 1, "p": 1.0}
    assert intervals.told(alone, "+.1f") == "+2.0"
    assert intervals.told({"value": 0.5, "low": 0.25, "high": 0.75}, ".0%") == "50% (25% to 75%)"
