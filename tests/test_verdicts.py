"""Verdicts err at most as often as they say, in whatever way they may err."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wganlab.report.claims import EQUAL, FAILS, HOLDS, PROVISIONAL, SMALL, UNDECIDED, Claim
from wganlab.report.measured import compared
from wganlab.report.verdicts import Verdict, stages_of
from wganlab.statistics import ALPHA, level

STUDIES = 1000
CLAIMS = 4
#: Most wrong studies of so many: ALPHA, and three standard errors.
MOST = STUDIES * ALPHA + 3 * math.sqrt(STUDIES * ALPHA * (1 - ALPHA))


def claim(**changes: Any) -> Claim:
    """A's FID against B's, a difference that should be negative, with some changes."""
    content: dict[str, Any] = {"says": "", "source": "", "metric": "eval/fid", "arm": "a", "versus": "b", "below": 0.0}
    return Claim(**content | changes)


def verdict(of: Claim, values: Any, *, claims: int = CLAIMS, first: int | None = None) -> Verdict:
    """The verdict on a claim by the values of its seeds, of which the ``first`` ones were planned, or all."""
    seeds = [*map(str, range(len(values)))]
    stages = [seeds] if first is None else [seeds[:first], seeds[first:]]
    alpha = level(claims, len(stages))
    return Verdict(of, dict(zip(seeds, map(float, values), strict=True)), stages, alpha)


Draw = Callable[[np.random.Generator], Any]
#: What is claimed, values of (claims, seeds) whose centre is the worst case, and the verdicts that would be wrong.
NULLS: dict[str, tuple[Claim, Draw, set[str]]] = {
    "normal": (claim(), lambda random: random.normal(size=(CLAIMS, 8)), {HOLDS}),
    "heavy tails": (claim(), lambda random: random.standard_t(2, size=(CLAIMS, 8)), {HOLDS}),
    "differences of skewed scores": (
        claim(),
        lambda random: random.lognormal(size=(CLAIMS, 8)) - random.lognormal(size=(CLAIMS, 8)),
        {HOLDS},
    ),
    "one baseline for all claims": (
        claim(),
        lambda random: random.lognormal(size=(CLAIMS, 8)) - random.lognormal(size=8),
        {HOLDS},
    ),
    "one arm, skewed to the right, below its median": (
        claim(versus=None, below=1.0),
        lambda random: random.lognormal(size=(CLAIMS, 8)),
        {HOLDS},
    ),
    "one arm, skewed to the right, above its median": (
        claim(versus=None, below=None, above=1.0),
        lambda random: random.lognormal(size=(CLAIMS, 8)),
        {HOLDS},
    ),
    "at the edge of two bounds": (
        claim(above=-0.1, below=0.1),
        lambda random: random.normal(0.1, 0.03, (CLAIMS, 8)),
        {HOLDS},
    ),
    "between two bounds that are near": (
        claim(above=-0.1, below=0.1),
        lambda random: random.normal(0.0, 0.5, (CLAIMS, 8)),
        {FAILS},
    ),
    "just too large to be small": (
        claim(matters=0.1),
        lambda random: random.normal(-0.1, 0.03, (CLAIMS, 8)),
        {SMALL, EQUAL, FAILS},
    ),
    "just too wrong to be equal": (
        claim(matters=0.1),
        lambda random: random.normal(0.1, 0.03, (CLAIMS, 8)),
        {HOLDS, SMALL, EQUAL},
    ),
    "runs that diverge": (
        claim(diverged="worst"),
        lambda random: differences(*np.where(random.random((2, CLAIMS, 8)) < 0.3, np.inf, random.lognormal(size=8))),
        {HOLDS},
    ),
    "shares of runs that diverge": (
        claim(metric="diverged"),
        lambda random: (random.random((CLAIMS, 8)) < 0.4) * 1.0 - (random.random((CLAIMS, 8)) < 0.4),
        {HOLDS},
    ),
}


def differences(ones: Any, others: Any) -> list[list[float]]:
    """Those of claims on scores of which some are infinite."""
    of = claim(diverged="worst")
    return [[compared(of, *pair) for pair in zip(*rows, strict=True)] for rows in zip(ones, others, strict=True)]


@pytest.mark.parametrize("null", NULLS)
def test_studies_are_wrong_at_most_as_often_as_they_say(null: str) -> None:
    """Four claims, at eight seeds, at the centre where an error is likeliest."""
    of, draw, wrong = NULLS[null]
    random = np.random.default_rng(0)
    errors = sum(any(verdict(of, values).decision in wrong for values in draw(random)) for _ in range(STUDIES))
    assert errors <= MOST


def test_a_second_look_does_not_raise_the_rate_of_errors() -> None:
    """Eight seeds more where the first eight decide nothing, which is what one is tempted to do."""
    random, errors = np.random.default_rng(0), 0
    for _ in range(STUDIES):
        values = random.normal(size=16)
        first = verdict(claim(), values[:8], claims=1)
        if first.decision == UNDECIDED:
            errors += verdict(claim(), values, claims=1, first=8).decision == HOLDS
        errors += first.decision == HOLDS
    assert errors <= MOST


@pytest.mark.parametrize(
    ("changes", "mean", "expected"),
    [
        ({}, -1.0, HOLDS),
        ({}, 1.0, FAILS),
        ({}, 0.0, UNDECIDED),
        ({"matters": 0.5}, -1.0, HOLDS),
        ({"matters": 0.5}, -0.25, SMALL),
        ({"matters": 0.5}, 0.0, EQUAL),
        ({"matters": 0.5}, 1.0, FAILS),
        ({"above": -0.5, "below": 0.5}, 0.1, HOLDS),
        ({"above": -0.5, "below": 0.5}, 1.0, FAILS),
        ({"above": -0.5, "below": 0.5}, 0.5, UNDECIDED),
        ({"below": None, "above": 0.0}, 1.0, HOLDS),
        ({"below": None, "above": 0.0, "matters": 0.5}, 0.25, SMALL),
    ],
)
def test_there_are_five_verdicts(changes: dict, mean: float, expected: str) -> None:
    values = mean + 0.05 * np.array([-2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2])
    found = verdict(claim(**changes), values)
    assert found.decision == expected
    centre, _, high = found.summary
    assert centre == pytest.approx(mean)
    if expected == HOLDS and not changes:
        assert high < 0, "the interval is that of the test"


def test_both_tests_are_shown_and_must_agree() -> None:
    values = [-1.0, -1.1, -0.9, -1.2, -0.8, -1.05, -0.95, -1.0]
    found = verdict(claim(), values, claims=20)
    assert found.p_values["t"][HOLDS] < 1e-6
    assert found.p_values["sign flips"][HOLDS] == 1 / 256
    assert found.decision == UNDECIDED, "eight seeds cannot decide twenty claims by an exact test"
    assert found.tested.startswith("sign flips 0.0039, t ")
    assert found.description == "undecided, leans towards holds (9 fresh seeds for 80% power)"


def test_nothing_is_decided_before_the_planned_seeds_are_there() -> None:
    found = Verdict(claim(), {"0": -1.0, "1": -1.0, "2": -1.1}, [[*map(str, range(10))]], level(1))
    assert found.decision == PROVISIONAL
    assert found.description == "provisional (3 of 10 seeds), leans towards holds"
    assert found.tested == "–"
    assert found.record()["p"] is None
    few = verdict(claim(), [-1.0, -1.0, -1.1])
    assert few.description == "provisional (3 seeds; a verdict takes 8), leans towards holds"
    others = Verdict(claim(), {"8": 1.0, "9": 1.1, "10": 1.2}, [[*map(str, range(8))]], level(1))
    assert others.description == "provisional (0 of 8 seeds), leans nowhere yet", "none of those that are planned"
    diverged = Verdict(claim(), {"0": -1.0}, [[*map(str, range(8))]], level(1), n_diverged=7)
    assert diverged.description == "incomplete (7 runs diverged, and the claim does not say what that counts as)"


def test_seeds_of_no_stage_are_not_shown_as_if_they_were_tested() -> None:
    """Another claim of the study lacks seed 7, so that what was added is no stage."""
    planned = [*map(str, range(8))]
    against = {str(seed): 5.0 + seed / 10 for seed in range(8, 16)}
    values = {seed: -1.0 + int(seed) / 100 for seed in planned} | against
    found = Verdict(claim(), values, [planned], level(1))
    assert found.decision == HOLDS
    assert found.summary[2] < 0, "the interval is of the seeds that were tested"
    assert found.seeds == "8 (8 more not counted)"
    assert [*found.record()["values"]] == planned
    second = Verdict(claim(), dict(list(values.items())[:10]), [planned, [*against]], level(1, 2))
    assert second.description == "provisional (10 of 16 seeds), leans towards holds"


def test_runs_that_do_not_belong_together_decide_nothing() -> None:
    planned = [*map(str, range(8))]
    found = Verdict(claim(), dict.fromkeys(planned, -1.0), [planned], level(1), objection="scores of two kinds")
    assert (found.decision, found.tested) == (PROVISIONAL, "–")
    assert found.description == "incomplete (scores of two kinds)"


def test_shares_have_exact_intervals_and_exact_power() -> None:
    """Eight of eight: Clopper and Pearson's interval, and the n of .9^n < .04."""
    found = verdict(claim(metric="diverged", versus=None, below=None, above=0.9), [1.0] * 8, claims=1)
    assert found.summary == (1.0, pytest.approx(0.04 ** (1 / 8)), 1.0)
    wanted = "31 to more than a thousand fresh seeds for 80% power"
    assert found.description == f"undecided, leans towards holds ({wanted})"
    none = verdict(claim(metric="diverged", versus=None, below=0.1), [0.0] * 8, claims=1)
    assert none.summary == (0.0, 0.0, pytest.approx(1 - 0.04 ** (1 / 8)))
    assert none.description == found.description, "it is its mirror"


def test_undecided_claims_say_how_many_seeds_would_have_power() -> None:
    values = [-1.0, 0.5, -0.8, 0.4, -1.2, 0.3, -0.1, -0.9]
    found = verdict(claim(), values, claims=1)
    assert found.description == "undecided, leans towards holds (29 to 51 fresh seeds for 80% power)"
    one_sided = claim(versus=None, metric="eval/fid", below=0)
    # seven of eight below: 10 of 12 signs decide at 0.02, and come with P = 0.82 where each has 7/8
    alone = verdict(one_sided, [-1.0, -5.0, -0.8, -0.4, -1.2, -0.3, -0.1, 0.9], claims=2)
    assert alone.description == "undecided, leans towards holds (12 to 73 fresh seeds for 80% power)"
    assert "infinitely worse" in verdict(claim(diverged="worst"), [*values[:7], math.inf]).description


def test_a_study_remembers_its_stages() -> None:
    planned = ["0", "1"]
    assert stages_of([["0", "1"], ["0", "1"]], planned, []) == [planned]
    assert stages_of([["0", "1", "2", "10"], ["0", "1", "10", "2"]], planned, [planned]) == [planned, ["2", "10"]]
    assert stages_of([["0", "1", "2", "3", "4"]], planned, [planned, ["2"]]) == [planned, ["2"], ["3", "4"]]
    assert stages_of([["0", "1", "2"]], planned, [planned]) == [planned], "no test can judge a single seed"
    grown = [*map(str, range(4))]
    assert stages_of([grown], grown, [planned]) == [planned, ["2", "3"]], (
        "a plan that grew after a look is a second one"
    )
    assert stages_of([grown], grown, [planned, ["2", "3"]]) == [planned, ["2", "3"]]
    assert stages_of([["5", "6"]], ["5", "6"], [planned]) == [["5", "6"]], "another study"
    assert stages_of([["0", "2"]], ["0", "2"], [planned]) == [planned], "nor by another plan for the sake of one seed"
    assert stages_of([["0", "2", "3"]], ["0", "2", "3"], [planned]) == [planned, ["2", "3"]]
    assert stages_of([["0", "1", "2"]], ["0", "1", "2"], [planned]) == [planned], "a plan that grew by one seed"
    assert stages_of([["0", "1", "2"], ["0", "1"]], planned, []) == [planned], "not until all claims have the seeds"
    assert stages_of([["0", "2"]], planned, []) == [planned], "nor before the planned ones are there"
