"""Verdicts on the claims of a study, by a protocol that is fixed before its runs are made.

A study plans its seeds. Until all of them are there, a verdict is provisional, and no p-value is shown. Seeds that are
added later are a further stage, tested beside the first by the inverse normal method at what is left of the level.
Claims are corrected for their number, so that at most ALPHA of all studies decide any claim wrongly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wganlab.report.claims import DIVERGED, EQUAL, FAILS, HOLDS, PROVISIONAL, SMALL, UNDECIDED, Claim
from wganlab.report.measured import Measured
from wganlab.report.power import seeds_wanted
from wganlab.report.tables import Table, markdown
from wganlab.runs import Run
from wganlab.statistics import (
    ALPHA,
    MIN_SEEDS,
    Test,
    combined,
    interval,
    level,
    median_interval,
    rank_interval,
    share_difference_interval,
    share_interval,
)

#: The seeds of each stage: those that were planned, then those that were added together.
Stages = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """The decision on a claim, from the numbers of its seeds: ``alpha`` is the level of each of its one-sided tests.

    ``n_diverged`` of its runs diverged. An ``objection`` says why its runs cannot be put together, ``missing`` by seed
    why a completed run has no number.
    """

    claim: Claim
    values: Mapping[str, float]
    stages: Stages
    alpha: float
    n_diverged: int = 0
    objection: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def incomplete(self) -> str | None:
        """Why no verdict can be given, whatever runs are still to come: an objection, or a seed without a number."""
        planned = [seed for stage in self.stages for seed in stage] or [*self.missing]
        return self.objection or next((self.missing[seed] for seed in planned if seed in self.missing), None)

    @property
    def complete(self) -> bool:
        """Whether the numbers are there that were planned, and enough of them, and belong together."""
        there = all(seed in self.values for stage in self.stages for seed in stage)
        return len(self.stages[0]) >= MIN_SEEDS and there and not self.incomplete

    @property
    def counted(self) -> dict[str, float]:
        """The numbers of the seeds that are tested: those of the stages, or all where no seeds are planned."""
        if not self.stages[0]:
            return dict(self.values)
        return {seed: self.values[seed] for stage in self.stages for seed in stage if seed in self.values}

    def above(self, bound: float, test: Test, *, sign: int = 1) -> float:
        """The p-value of "the centre is above the bound", or below it with ``sign`` -1, over all stages."""
        stages = [[self.mirrored(self.values[seed], sign) for seed in of if seed in self.values] for of in self.stages]
        there = [stage for stage in stages if stage]
        if not there:
            return 1.0
        return combined([test(stage, self.mirrored(bound, sign)) for stage in there], [*map(len, there)])

    def mirrored(self, value: float, sign: int) -> float:
        """A value, or with ``sign`` -1 its mirror image, which is above that of a bound where the value is below it.

        The share of zeros is the image of that of ones.
        """
        return value if sign == 1 else 1 - value if "binomial" in self.claim.tests else -value

    @cached_property
    def p_values(self) -> dict[str, dict[str, float]]:
        """The p-value of each verdict that the claim may have, by each of its tests."""
        return {name: self.statements(test) for name, test in self.claim.tests.items()}

    def statements(self, test: Test) -> dict[str, float]:
        """The p-value of each verdict, by one test.

        What a claim says and its contrary leave no third, so that at most one of them can be wrong, and each may take
        the whole level; the two ways to lie outside of two bounds share it.
        """
        low, high, matters = self.claim.low, self.claim.high, self.claim.matters
        if math.isfinite(low) and math.isfinite(high):
            inside = max(self.above(low, test), self.above(high, test, sign=-1))
            outside = min(self.above(low, test, sign=-1), self.above(high, test))
            return {HOLDS: inside, FAILS: min(1.0, 2 * outside)}
        bound, sign = (low, 1) if math.isfinite(low) else (high, -1)
        found = {HOLDS: self.above(bound, test, sign=sign), FAILS: self.above(bound, test, sign=-sign)}
        if matters:
            below = self.above(bound + sign * matters, test, sign=-sign)
            found[SMALL] = max(found[HOLDS], below)
            found[EQUAL] = max(below, self.above(bound - sign * matters, test, sign=sign))
        return found

    def p(self, statement: str) -> float:
        """The larger p-value of a claim's tests, all of which must agree; 1 for a verdict that it cannot have."""
        return max(p.get(statement, 1.0) for p in self.p_values.values())

    @property
    def decision(self) -> str:
        """One of the verdicts; undecided where the numbers speak for none, provisional where some are missing."""
        if not self.complete:
            return PROVISIONAL
        return next((name for name in (SMALL, HOLDS, FAILS, EQUAL) if self.p(name) < self.alpha), UNDECIDED)

    @property
    def leaning(self) -> str:
        """The verdict with the smallest p-value."""
        return min((HOLDS, FAILS, EQUAL), key=self.p)

    @property
    def description(self) -> str:
        """The decision; of an open one also what it leans towards and what is missing."""
        if self.decision not in (UNDECIDED, PROVISIONAL):
            return self.decision
        planned = sum(map(len, self.stages))
        found = len(self.counted) if planned else 0
        if self.incomplete:
            return f"incomplete ({self.incomplete})"
        if self.n_diverged and not (self.claim.diverged or self.claim.metric == DIVERGED) and found < planned:
            many = "1 run" if self.n_diverged == 1 else f"{self.n_diverged} runs"
            return f"incomplete ({many} diverged, and the claim does not say what that counts as)"
        leaning = f"leans towards {self.leaning}" if found > 1 else "leans nowhere yet"
        if self.decision == PROVISIONAL:
            few = f"{len(self.counted)} seeds; a verdict takes {MIN_SEEDS}"
            seeds = f"{found} of {planned} seeds" if found < planned else few
            return f"provisional ({seeds}), {leaning}"
        return f"undecided, {leaning} ({seeds_wanted(self)})"

    @property
    def summary(self) -> tuple[float, float, float]:
        """Centre over the seeds, and its interval at the level of the tests."""
        values, wide = list(self.counted.values()), 1 - 2 * self.alpha
        if "binomial" in self.claim.tests:
            return share_interval(values, level=wide)
        if "ranks" in self.claim.tests:
            return rank_interval(values, level=wide)
        if self.claim.of_shares:
            return share_difference_interval(values, level=wide)
        return (interval if "t" in self.claim.tests else median_interval)(values, level=wide)

    @property
    def measured(self) -> str:
        """Centre and interval over the seeds, in words."""
        if not self.counted:
            return "not measured"
        centre, low, high = self.summary
        return f"{centre:.3g}" + (f" [{low:.3g}, {high:.3g}]" if len(self.counted) > 1 else "")

    @property
    def seeds(self) -> str:
        """How many seeds are tested, how many looks at them, and how many of the runs diverged.

        More that are there count no more, as an earlier look has decided, or not yet: other claims lack them, or it is
        a single one.
        """
        looks = f" at look {len(self.stages)}" if len(self.stages) > 1 else ""
        more = len(self.values) - len(self.counted)
        notes = [f"{self.n_diverged} diverged"] * bool(self.n_diverged) + [f"{more} more not counted"] * bool(more)
        return f"{len(self.counted)}{looks}" + (f" ({', '.join(notes)})" if notes else "")

    @property
    def tested(self) -> str:
        """The p-value of each test for the verdict that the numbers speak for; none of a provisional one."""
        if self.decision == PROVISIONAL:
            return "–"
        statement = self.leaning if self.decision == UNDECIDED else self.decision
        return ", ".join(f"{name} {p[statement]:.2g}" for name, p in self.p_values.items())

    def record(self) -> dict[str, Any]:
        """For verdicts.json. ``p`` is that of the verdict, by test, before any correction; ``alpha`` its level."""
        centre, low, high = self.summary
        statement = self.leaning if self.decision == UNDECIDED else self.decision
        open_ = self.decision == PROVISIONAL
        return {
            "claim": self.claim.says,
            "source": self.claim.source,
            "number": self.claim.number,
            "wanted": self.claim.wanted,
            "matters": self.claim.matters,
            "centre": centre,
            "interval": [low, high],
            "level": 1 - 2 * self.alpha,
            "values": {seed: x if math.isfinite(x) else str(x) for seed, x in self.counted.items()},
            "diverged": self.n_diverged,
            "objection": self.incomplete,
            "p": None if open_ else {name: p[statement] for name, p in self.p_values.items()},
            "alpha": self.alpha,
            "verdict": self.decision,
            "description": self.description,
        }


def decide(
    claims: Sequence[Claim], found: Sequence[Measured], planned: Sequence[str], *, earlier: Stages = ()
) -> list[Verdict]:
    """The verdict of each claim. ``earlier`` are the stages at which the study was looked at before."""
    stages = stages_of([measured.values.keys() for measured in found], planned, earlier)
    return [decided(claim, measured, stages, len(claims)) for claim, measured in zip(claims, found, strict=True)]


def decided(claim: Claim, measured: Measured, stages: Stages, claims: int) -> Verdict:
    """The verdict on one of so many claims, at the first look that decides it: a later one does not take it back."""
    looks = (
        Verdict(claim, measured.values, stages[:look], level(claims, look), *measured[1:])
        for look in range(1, len(stages) + 1)
    )
    for verdict in looks:
        if verdict.decision not in (UNDECIDED, PROVISIONAL):
            break
    return verdict


def stages_of(found: Sequence[Any], planned: Sequence[str], earlier: Stages) -> list[list[str]]:
    """The stages of a study: as they were, and one more where all claims have seeds beyond all that were there.

    A plan that has grown or changed since an earlier look adds a stage, too; only one without any of its seeds is
    another study. A single seed is no stage: no test can judge it.
    """
    if not planned:
        return [[]]
    stages = [list(stage) for stage in earlier] if earlier and set(earlier[0]) & set(planned) else [[*planned]]
    before = {seed for stage in stages for seed in stage}
    grown = [seed for seed in planned if seed not in before]
    if len(grown) > 1:
        return [*stages, grown]
    everywhere = set.intersection(*map(set, found)) if found else set()
    added = sorted(everywhere - before, key=lambda seed: (len(seed), seed))
    return [*stages, added] if len(added) > 1 and before <= everywhere else stages


def cost(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs of a study have cost, for verdicts.json."""
    summaries = [run.summary for run in runs if run.summary]
    return {
        "runs": len(summaries),
        "steps": max((summary["steps"] for summary in summaries), default=0),
        "seconds": sum(summary["seconds"] for summary in summaries),
        "commits": sorted({summary["commit"] or "unknown" for summary in summaries}),
        "devices": sorted({f"{summary['device']}, {summary['threads']} threads" for summary in summaries}),
        "finished": max((str(run.status.get("finished")) for run in runs if run.summary), default=None),
    }


def conclusion(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts and the stages of their seeds, for verdicts.json."""
    stages = max((verdict.stages for verdict in verdicts), key=len, default=[])
    return {"alpha": ALPHA, "stages": stages, "claims": [verdict.record() for verdict in verdicts]}


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in Markdown, with a note that says how they came about."""
    head = ["claim", "source", "number", "supported if", "measured [interval]", "seeds", "p", "verdict"]
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        cells = [claim.says, claim.source, claim.number, claim.wanted, verdict.measured, verdict.seeds, verdict.tested]
        rows.append([*cells, f"**{verdict.description}**"])
    return f"{markdown(Table(head, rows, 'lllllrll'))}\n{protocol(verdicts)}\n"


def protocol(verdicts: Sequence[Verdict]) -> str:
    """How these verdicts were reached, in a few sentences."""
    last = max(verdicts, key=lambda verdict: len(verdict.stages))
    small = {verdict.claim.matters for verdict in verdicts if verdict.claim.matters}
    matters = f" Differences below {', '.join(f'{size:g}' for size in sorted(small))} are small." if small else ""
    planned, *added = (len(stage) for stage in last.stages)
    levels = [level(len(verdicts), look) for look in range(1, len(last.stages) + 1)]
    more = "".join(f" and {n} added" for n in added)
    then = f" A claim that look 1 decides stays decided; look {len(levels)} has what it left open." if added else ""
    return (
        f"Look {len(levels)} at {planned} planned{more} seeds: every test is one-sided at "
        f"{', then at '.join(f'{alpha:.2g}' for alpha in levels)}, so that with {len(verdicts)} claims at most "
        f"{ALPHA:.0%} of such studies err in any verdict; intervals are at "
        f"{', then at '.join(f'{1 - 2 * alpha:.4g}' for alpha in levels)}.{then} The centre is the mean; where signs "
        f"decide, the median; where ranks decide, the median of the means of all pairs.{matters}"
    )
