import itertools
import math
import random
from statistics import NormalDist, mean, stdev

import numpy as np
import pytest
from scipy import stats

from digits.reports import significance
from digits.reports.significance import Finding


def coin(fixed: int, broken: int) -> float:
    """Return the two-sided p-value of a fair coin by counting, without the help of a library."""
    tosses = fixed + broken
    tail = sum(math.comb(tosses, heads) for heads in range(min(fixed, broken) + 1))
    return float(min(1.0, 2 * tail / 2**tosses))


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (5, 5), (20, 8), (3, 40), (70, 10)])
def test_p_of_two_results_is_that_of_tossing_coins(fixed: int, broken: int) -> None:
    assert significance.paired(fixed, broken, 5000).p == pytest.approx(coin(fixed, broken))


def test_example_of_a_textbook() -> None:
    """Agresti, Categorical Data Analysis: 150 against 86 who changed their mind, of 1,600: 0.040, 0.022 to 0.058."""
    found = significance.paired(150, 86, 1600)
    assert found.difference == pytest.approx(0.04)
    assert (found.low, found.high) == pytest.approx((0.022, 0.058), abs=0.002)
    assert found.p == pytest.approx(stats.binomtest(86, 236).pvalue)
    assert found.p < 1e-4


@pytest.mark.parametrize("total", [6, 17, 40])
def test_interval_leaves_0_out_exactly_where_the_verdict_is_a_difference(total: int) -> None:
    for fixed in range(total + 1):
        found = significance.paired(fixed, total - fixed, 1000)
        assert (found.low <= 0 <= found.high) == (found.verdict == "no evidence")
        assert found.low <= found.difference <= found.high


def test_direction_of_the_verdict() -> None:
    assert [significance.paired(*pair, 100).verdict for pair in ((20, 2), (2, 20), (5, 4), (0, 0))] == [
        "better",
        "worse",
        "no evidence",
        "no evidence",
    ]


@pytest.mark.slow
def test_as_many_images_as_are_said_to_be_needed_show_the_difference_in_four_of_five_cases() -> None:
    needed = significance.paired(30, 15, 5000).needed
    assert needed
    draws = np.random.default_rng(0).multinomial(needed, [30 / 5000, 15 / 5000, 1 - 45 / 5000], size=1000)
    found = mean(significance.paired(int(fixed), int(broken), needed).p < 0.05 for fixed, broken, _ in draws)
    assert 0.74 < found < 0.86  # 0.8, less a little for the exact test, within 4 standard errors


@pytest.mark.slow
def test_one_comparison_in_twenty_of_equals_differs_at_most() -> None:
    draws = np.random.default_rng(1).multinomial(5000, [0.004, 0.004, 0.992], size=2000)
    found = mean(significance.paired(int(fixed), int(broken), 5000).p < 0.05 for fixed, broken, _ in draws)
    assert 0.01 < found <= 0.05


SEEDS = [[0.9910, 0.9914, 0.9906, 0.9912, 0.9908], [0.9931, 0.9936, 0.9928, 0.9940]]


def test_seeds_are_compared_by_welch() -> None:
    found = significance.across_seeds(*SEEDS)
    first, second = ((mean(side), stdev(side) ** 2 / len(side), len(side)) for side in SEEDS)
    error = math.sqrt(first[1] + second[1])
    freedom = error**4 / (first[1] ** 2 / (first[2] - 1) + second[1] ** 2 / (second[2] - 1))
    assert found.difference == pytest.approx(second[0] - first[0])
    assert found.p == pytest.approx(2 * stats.t.sf(found.difference / error, freedom))
    half = stats.t.ppf(0.975, freedom) * error
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert found.verdict == "better"
    assert significance.across_seeds(*reversed(SEEDS)).verdict == "worse"


def test_seeds_without_any_spread() -> None:
    assert significance.across_seeds([0.9, 0.9], [0.9, 0.9]) == Finding(0.0, 0.0, 0.0, 1.0, None)
    assert significance.across_seeds([0.9, 0.9], [0.8, 0.8]).verdict == "worse"


@pytest.mark.slow
def test_as_many_seeds_as_are_said_to_be_needed_show_the_difference_in_four_of_five_cases() -> None:
    spread, difference, random_numbers = 0.0007, 0.0006, random.Random(0)
    exact = [spread * NormalDist().inv_cdf(share) for share in (0.16, 0.5, 0.84)]
    needed = significance.across_seeds(exact, [value + difference for value in exact]).needed
    assert needed
    drawn = (
        [[random_numbers.gauss(middle, stdev(exact)) for _ in range(needed)] for middle in (0.0, difference)]
        for _ in range(600)
    )
    assert 0.72 < mean(significance.across_seeds(*sides).p < 0.05 for sides in drawn) < 0.88


@pytest.mark.parametrize("effect", [0.5, 0.8, 1.0])
def test_seeds_said_to_be_needed_are_the_fewest_with_a_power_of_80_percent(effect: float) -> None:
    """Cohen (1988), Statistical Power Analysis, table 2.4.1 has 64, 26 and 17."""

    def power(count: int) -> float:
        freedom, away = 2 * count - 2, effect * math.sqrt(count / 2)
        edge = stats.t.ppf(0.975, freedom)
        return float(stats.nct.sf(edge, freedom, away) + stats.nct.cdf(-edge, freedom, away))

    fewest = next(count for count in itertools.count(2) if power(count) >= 0.8)
    first = [-1.0, 0.0, 1.0]  # a standard deviation of 1
    assert significance.across_seeds(first, [value + effect for value in first]).needed == fewest


def test_changes_are_the_places_of_what_is_newly_right_and_newly_wrong() -> None:
    before, after = [True, False, True, False, True], [True, True, False, False, False]
    assert significance.changes(before, after) == ([1], [2, 4])
    with pytest.raises(ValueError, match="shorter"):
        significance.changes(before, after[1:])


def test_holm_corrects_as_it_is_defined() -> None:
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
    for values in itertools.permutations([0.001, 0.02, 0.5]):
        corrected = significance.holm(values)
        assert sorted(range(3), key=corrected.__getitem__) == sorted(range(3), key=values.__getitem__)
