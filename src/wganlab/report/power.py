"""How many seeds would decide a claim that is undecided."""

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from wganlab.report.claims import EQUAL, FAILS
from wganlab.statistics import FIRST_LOOK, largest_spread, seeds_for_power, seeds_for_share, share_interval

if TYPE_CHECKING:
    from wganlab.report.verdicts import Verdict

POWER = 0.8


def seeds_wanted(verdict: "Verdict") -> str:
    """The seeds that would have a power of 80% if they were planned, and looked at once, in words.

    A range: with the effect or spread as found, and as it may well be.
    """
    values = list(verdict.counted.values())
    bounds, alpha = bounds_of(verdict), verdict.alpha / (1 - FIRST_LOOK) ** (len(verdict.stages) - 1)
    power, choose = 1 - (1 - POWER) / len(bounds), max  # all of the tests must succeed
    if verdict.leaning == FAILS:  # any of them may, at its part of the level
        power, choose, alpha = POWER, min, alpha / len(bounds)
    if "signs" in verdict.claim.tests or "binomial" in verdict.claim.tests:
        shares = [share_beyond(verdict, bound, sign) for bound, sign in bounds]
        pairs = [
            [
                seeds_for_share(share, least, alpha, power=power)
                for share in (fmean(ones), share_interval(ones, level=0.6)[1])
            ]
            for ones, least in shares
        ]
    elif not all(map(math.isfinite, values)):
        return "some seeds are infinitely worse: no number of them is known"
    else:
        spreads = (stdev(values), largest_spread(values))
        effects = [sign * (fmean(values) - bound) for bound, sign in bounds]
        pairs = [[seeds_for_power(effect, spread, alpha, power=power) for spread in spreads] for effect in effects]
    few, many = (choose(n or math.inf for n in of_bounds) for of_bounds in zip(*pairs, strict=True))
    if math.isinf(few):
        return "a thousand seeds would not give 80% power"
    most = "" if many == few else " to more than a thousand" if math.isinf(many) else f" to {many}"
    return f"{few}{most} fresh seeds for 80% power"


def bounds_of(verdict: "Verdict") -> list[tuple[float, int]]:
    """The bounds to be shown to be passed for the verdict that the numbers lean towards, and in which direction."""
    low, high, matters = verdict.claim.low, verdict.claim.high, verdict.claim.matters
    if verdict.leaning == EQUAL and matters:
        bound = low if math.isfinite(low) else high
        return [(bound - matters, 1), (bound + matters, -1)]
    sign = -1 if verdict.leaning == FAILS else 1
    return [bound for bound in ((low, sign), (high, -sign)) if math.isfinite(bound[0])]


def share_beyond(verdict: "Verdict", bound: float, sign: int) -> tuple[list[float], float]:
    """The zeros and ones of which a test of shares decides that a bound is passed, and the share to be above."""
    values = verdict.counted.values()
    if "signs" in verdict.claim.tests:
        return [float(sign * (value - bound) > 0) for value in values], 0.5
    return [verdict.mirrored(value, sign) for value in values], verdict.mirrored(bound, sign)
