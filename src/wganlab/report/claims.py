"""Claims of a study, and the numbers of its runs that decide them; :mod:`wganlab.report.verdicts` decides."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt

from wganlab.checks import check_call
from wganlab.metrics import metric_of
from wganlab.report.compare import BUDGETS, setting
from wganlab.report.epochs import mean_over_epoch, mean_over_steps
from wganlab.runs import Row, Run, Status, final_and_best, load_yaml
from wganlab.schema import ConfigError
from wganlab.statistics import Test, share_test, sign_flip_test, sign_test, signed_rank_test, t_test

At = Literal["final", "best", "gap", "mean"]
Number = Annotated[float, Field(allow_inf_nan=False)]
#: The metric of a claim on the share of runs that diverge: 1 for a run that did, else 0.
DIVERGED = "diverged"


class Claim:
    """A sentence that runs decide: the centre over seeds of one number lies above, below or between bounds.

    The number is ``metric`` of ``arm``: after the last step, at its best, the gap between these two (collapse), or its
    mean over the run, or over one ``epoch`` of it. ``until`` takes a run as if it had ended there, at a number of
    steps, epochs, images or seconds; runs that are still being made longer count, too. With ``reaches`` it is 1 for a
    run that is at least as good, else 0, and the claim is about shares of runs. With ``versus`` it is the difference to
    another arm with the same seed, with ``versus_epoch`` to another epoch, or with ``ratio`` the logarithm (base 10) of
    their ratio. With ``tracks`` it is instead the rank correlation of ``metric`` with another one over the run. Where a
    study sweeps over more than arms and seeds, the number is the mean over the other keys; ``where`` restricts the runs
    by their settings. A best value takes a metric with a direction (:data:`wganlab.metrics.METRICS`).

    The centre is the mean of differences and ratios, tested by Student's t and by an exact test, both of which must
    agree; and the median of one arm's numbers, tested by signs. With ``diverged="worst"`` a run that diverged counts as
    worse than all others, and ranks decide of the median; without, such a run leaves the claim open. The metric
    "diverged" is itself the share of runs that did. ``matters`` is the smallest difference from a bound that is of
    interest. A ``headline`` is among the sentences that open the index of all studies.
    """

    def __init__(
        self,
        *,
        says: str,
        source: str,
        metric: str,
        arm: str,
        at: At = "final",
        epoch: PositiveInt | None = None,
        until: Mapping[Literal["step", "epoch", "images_seen", "seconds"], PositiveInt] | None = None,
        reaches: Number | None = None,
        versus: str | None = None,
        versus_epoch: PositiveInt | None = None,
        ratio: bool = False,
        tracks: str | None = None,
        where: Mapping[str, Any] | None = None,
        above: Number | None = None,
        below: Number | None = None,
        diverged: Literal["worst"] | None = None,
        matters: PositiveFloat | None = None,
        headline: bool = False,
    ) -> None:
        self.says, self.source, self.metric, self.arm, self.at = says, source, metric, arm, at
        self.versus, self.ratio, self.tracks, self.where = versus, ratio, tracks, dict(where or {})
        self.epoch, self.versus_epoch, self.diverged, self.matters = epoch, versus_epoch, diverged, matters
        self.until, self.headline, self.reaches = dict(until or {}), headline, reaches
        if versus_epoch is not None and epoch is None:
            raise ValueError("versus_epoch needs epoch")
        if ratio and not self.paired:
            raise ValueError("ratio needs versus, or versus_epoch")
        if epoch is not None and (tracks or at != "final"):
            raise ValueError("epoch is a mean over an epoch; leave at and tracks out")
        if above is None and below is None:
            raise ValueError("needs above or below, or both: the numbers that would support it")
        self.low = -math.inf if above is None else above
        self.high = math.inf if below is None else below
        directed = metric_of(metric).direction is not None
        if not directed and at in ("best", "gap") and not tracks:
            raise ValueError(f"at={at} needs a metric with a best value; {metric} has only final and mean")
        if reaches is not None and (not directed or tracks or ratio or epoch is not None or at in ("gap", "mean")):
            raise ValueError("reaches needs a final or best value that has a direction, and no ratio")
        if diverged and (tracks or not directed):
            raise ValueError(f"diverged={diverged} needs a metric with a worst value; {tracks or metric} has none")
        if not self.low < self.high:
            raise ValueError(f"above={above:g} must be less than below={below:g}")

    @property
    def paired(self) -> bool:
        """Whether the numbers are differences or ratios."""
        return bool(self.versus or self.versus_epoch)

    @property
    def arms(self) -> list[str]:
        """The arms that it is about."""
        return [self.arm, self.versus] if self.versus else [self.arm]

    @property
    def of_shares(self) -> bool:
        """Whether the number of a run is 0 or 1."""
        return self.metric == DIVERGED or self.reaches is not None

    @property
    def tests(self) -> dict[str, Test]:
        """The tests that must agree, by name."""
        if self.of_shares:
            return {"sign flips": sign_flip_test} if self.paired else {"binomial": share_test}
        if not self.paired:
            return {"signs": sign_test}
        if self.diverged:
            return {"ranks": signed_rank_test}
        return {"sign flips": sign_flip_test, "t": t_test}

    @property
    def number(self) -> str:
        """The number that is measured, in words."""
        title = metric_of(self.metric).title
        if self.tracks:
            measured = f"rank correlation of {title} with {metric_of(self.tracks).title}"
        else:
            measured = {"final": "", "best": "best ", "gap": "last less best ", "mean": "mean "}[self.at] + title
        if self.reaches is not None:
            measured = f"share of runs with {measured} of {self.reaches:g} or better"
        of, other = (f" in epoch {epoch}" if epoch else "" for epoch in (self.epoch, self.versus_epoch or self.epoch))
        arms = self.arm + of
        if self.versus or self.versus_epoch:
            arms += f" {'/' if self.ratio else '−'} {self.versus or self.arm}{other}"
        where = "".join(f", {key}={value}" for key, value in self.where.items())
        where += "".join(f", until {key.replace('_', ' ')} {value:,}" for key, value in self.until.items())
        return f"{'log10 of ' if self.ratio else ''}{measured}: {arms}{where}"

    @property
    def wanted(self) -> str:
        """The numbers that support the claim, in words."""
        bounds = [f"above {self.low:g}"] * math.isfinite(self.low) + [f"below {self.high:g}"] * math.isfinite(self.high)
        return " and ".join(bounds)

    def values(self, runs: Sequence[Run]) -> dict[str, float]:
        """The number for each seed that has it; infinite where a run diverged that counts as the worst."""
        first = self.measured(runs, self.arm, self.epoch)
        if not self.paired:
            return first
        second = self.measured(runs, self.versus or self.arm, self.versus_epoch or self.epoch)
        pairs = {seed: self.compared(first[seed], second[seed]) for seed in first if seed in second}
        return {seed: value for seed, value in pairs.items() if not math.isnan(value)}

    def compared(self, one: float, other: float) -> float:
        """Difference or logarithm of the ratio; 0 where both are the worst, not a number where there is no ratio.

        Of losses below zero it is the ratio of their sizes; a score at or below zero, such as KID may be, has none.
        """
        if math.isinf(one) or math.isinf(other):
            return 0.0 if one == other else one - other
        if not self.ratio:
            return one - other
        negative = one < 0 and metric_of(self.metric).protocol is not None
        return math.log10(one / other) if one * other > 0 and not negative else math.nan

    def measured(self, runs: Sequence[Run], arm: str, epoch: int | None) -> dict[str, float]:
        """The number of one arm, in an epoch or the whole run, by seed: the mean over the other keys of the sweep."""
        found: dict[str, list[float]] = {}
        for run in self.of_arm(runs, arm):
            value = self.of_run(run) if epoch is None else mean_over_epoch(run.rows, self.metric, epoch)
            if self.diverged and run.diverged and value is None:
                value = metric_of(self.metric).sign * math.inf if self.reaches is None else 0.0
            if value is not None and not math.isnan(value):
                found.setdefault(str(run.config.get("seed")), []).append(value)
        return {seed: fmean(values) for seed, values in found.items()}

    def of_arm(self, runs: Sequence[Run], arm: str) -> list[Run]:
        """The runs of an arm that the claim is about."""
        return [
            run
            for run in runs
            if arm_of(run) == arm and all(equal(setting(run, key), value) for key, value in self.where.items())
        ]

    def has_diverged(self, run: Run) -> bool:
        """Whether a run diverged before it was as long as the claim asks."""
        return run.diverged and self.rows_of(run) is None

    def n_diverged(self, runs: Sequence[Run]) -> int:
        """How many of its runs diverged."""
        return sum(self.has_diverged(run) for arm in self.arms for run in self.of_arm(runs, arm))

    def objection(self, runs: Sequence[Run]) -> str | None:
        """Why the runs that completed cannot be put together, in words; None where they can.

        The seeds of an arm must be of one length, unless the claim says at which they are read, and scores of one
        protocol, at equal settings of whatever else is swept.
        """
        groups: dict[Any, list[Run]] = {}
        for arm in self.arms:
            for run in self.of_arm(runs, arm):
                if run.state == Status.COMPLETED:
                    others = [item for item in run.overrides.items() if item[0] not in ("seed", *BUDGETS)]
                    groups.setdefault(tuple(sorted(others)), []).append(run)
        seeds = Counter((arm, run.config.get("seed")) for arm in self.arms for run in self.of_arm(runs, arm))
        if self.of_shares and max(seeds.values(), default=0) > 1:
            return "several runs of one seed, of which a share is none, and no where that says which"
        for key in () if self.until or self.epoch else BUDGETS:
            for group in groups.values():
                if len(lengths := {setting(run, key) for run in group}) > 1:
                    return f"runs of {' and '.join(sorted(lengths))} {key}, and no until that says where to read them"
        if metric_of(self.metric).protocol is None:
            return None
        mixed = any(len({run.protocol.get("id") for run in group}) > 1 for group in groups.values())
        scored = {(arm_of(run), run.protocol.get("id")) for group in groups.values() for run in group}
        arms, protocols = ({pair[i] for pair in scored} for i in range(2))
        apart = len(scored) == len(arms) and len(protocols) > 1  # each arm has one: no sweep over data sets
        return "scores of different protocols" if mixed or apart else None

    def of_run(self, run: Run) -> float | None:
        """The number of one run; None where it was not measured, or the run is not complete."""
        value = self.value_of(run)
        if self.reaches is None or value is None:
            return value
        sign = metric_of(self.metric).sign
        return float(sign * value <= sign * self.reaches)

    def value_of(self, run: Run) -> float | None:
        """The value that a run reached, or None."""
        if self.metric == DIVERGED:
            return float(self.has_diverged(run)) if run.diverged or self.rows_of(run) is not None else None
        made = self.rows_of(run)
        if made is None:
            return None
        rows = [row for row in made if self.metric in row]
        if self.tracks:
            pairs = [(row[self.metric], row[self.tracks]) for row in rows if self.tracks in row]
            if len(pairs) < 3:
                return None
            from scipy.stats import spearmanr  # takes a second to import

            return float(spearmanr(*zip(*pairs, strict=True)).statistic)
        if not rows:
            return None
        if self.at == "mean":
            return mean_over_steps(rows, self.metric)
        if self.at in ("final", "gap") and run.is_lost(self.metric, made):
            return None
        final, best = rows[-1][self.metric], final_and_best(rows)["best"].get(self.metric, {}).get("value")
        if self.at == "final" or best is None:
            return final if self.at == "final" else None
        return best if self.at == "best" else final - best

    def rows_of(self, run: Run) -> list[Row] | None:
        """The rows of a run that is as long as the claim asks, as if it had ended there; None of another."""
        made = run.rows
        for key, last in self.until.items():
            if not any(row.get(key, 0) >= last for row in made):
                return None
            made = [row for row in made if row.get(key, 0) <= last]
        return made if self.until or run.state == Status.COMPLETED else None


def read_claims(
    contents: Sequence[Mapping[str, Any]], arms: Sequence[str], where: str, *, matters: float | None = None
) -> list[Claim]:
    """The claims of a study.yaml; ``matters``, in decades, is that of ratios which do not say themselves.

    Raises ConfigError for a wrong claim, and for an arm that the study does not have.
    """
    claims = []
    for i, content in enumerate(contents):
        key = f"{where}: claims[{i}]."
        converted = check_call(Claim, content, key)
        try:
            claim = Claim(**dict(content) | {name.removeprefix(key): value for name, value in converted.items()})
        except ValueError as error:
            raise ConfigError(key.rstrip("."), f": {error}") from error
        claim.matters = claim.matters or (matters if claim.ratio else None)
        for name in ("arm", "versus"):
            value = getattr(claim, name)
            if value is not None and value not in arms:
                raise ConfigError(f"{key}{name}", f"={value}: no such arm; allowed are {', '.join(arms)}")
        claims.append(claim)
    return claims


def equal(found: str, wanted: Any) -> bool:
    """Whether the setting of a run is what a study.yaml names, however either is written."""
    try:
        return bool(load_yaml(found) == wanted or float(found) == float(wanted))
    except (yaml.YAMLError, TypeError, ValueError):
        return found == str(wanted)


def arm_of(run: Run) -> str | None:
    """The arm of a study that a run belongs to."""
    return run.overrides.get("arms")
