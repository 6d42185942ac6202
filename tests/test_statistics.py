"""Verdicts err at most as often as they say, and say what the numbers say."""

import math

import numpy as np
import pytest

from wganlab.statistics import ALPHA, between, exceeds, holm, interval, seeds_needed


def test_interval_of_known_values() -> None:
    # t(0.975, 2) = 4.302653, sd of 1, 2, 3 is 1
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert math.isnan(interval([1.0])[1])


def test_one_sided_p_value_of_known_values() -> None:
    # t = sqrt(3) with 2 degrees of freedom: the upper tail is (1 - t / sqrt(2 + t^2)) / 2
    t = (2 - 1) / 1 * math.sqrt(3)
    assert exceeds([1.0, 2.0, 3.0], 1.0) == pytest.approx((1 - t / math.sqrt(2 + t * t)) / 2)
    assert exceeds([1.0, 2.0, 3.0], -math.inf) == 0
    assert exceeds([5.0], 1.0) == 1


def test_equal_values_are_judged_by_the_sign_test() -> None:
    assert exceeds([25.0, 25.0, 25.0], 24.5) == 1 / 8
    assert between([25.0] * 3, 24.5, math.inf) == (True, 0.25)
    assert seeds_needed([25.0] * 3, 24.5, math.inf) == 6


def test_verdicts_follow_the_interval() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95]
    assert between(values, 0.5, math.inf)[0]
    assert between(values, 0.5, math.inf)[1] < 0.001
    assert not between(values, 1.5, math.inf)[0]
    assert between(values, 1.5, math.inf)[1] < 0.001
    assert between(values, 1.0, math.inf)[1] == pytest.approx(1)
    inside, p = between(values, 0.5, 1.5)
    assert inside
    assert p < 0.01
    outside, p = between(values, 2.0, 3.0)
    assert not outside
    assert p < 0.01


def test_holm_of_known_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_seeds_needed() -> None:
    values = [0.8, 1.0, 1.2]
    n = seeds_needed(values, 0.9, math.inf)
    assert n is not None
    sd = 0.2
    from scipy.stats import t

    for seeds, decided in ((n, True), (n - 1, False)):
        assert (t.isf(ALPHA / 2, seeds - 1) * sd / math.sqrt(seeds) < 1.0 - 0.9) == decided
    assert seeds_needed([0.0, 1.0, 2.0], 1.0, math.inf) is None


NULLS = {
    "normal": lambda random, shape: random.normal(size=shape),
    "heavy tails": lambda random, shape: random.standard_t(3, size=shape),
    "differences of skewed scores": lambda random, shape: random.lognormal(size=shape) - random.lognormal(size=shape),
    "differences of counts": lambda random, shape: (random.poisson(2, shape) - random.poisson(2, shape)).astype(float),
}


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("seeds", [3, 5])
def test_studies_without_effects_find_one_at_most_at_the_stated_rate(null: str, seeds: int) -> None:
    """Four claims of which none is true: the rate of studies that decide any of them."""
    random = np.random.default_rng(0)
    studies, claims = 1500, 4
    values = NULLS[null](random, (studies, claims, seeds))
    wrong = sum(min(holm([between(list(row), 0.0, math.inf)[1] for row in study])) < ALPHA for study in values)
    assert wrong / studies <= ALPHA + 2.5 * math.sqrt(ALPHA * (1 - ALPHA) / studies)


def test_the_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    found = [interval(list(row)) for row in random.normal(loc=3, size=(2000, 4))]
    covered = np.mean([low < 3 < high for _, low, high in found])
    assert covered == pytest.approx(0.95, abs=0.015)
