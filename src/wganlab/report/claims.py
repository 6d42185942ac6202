"""Claims of a study, the numbers of its runs that decide them, and the verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from wganlab.metrics import metric_of
from wganlab.report.compare import setting
from wganlab.report.epochs import mean_over_epoch
from wganlab.runs import Run, Status, final_and_best
from wganlab.schema import ConfigError, check_call
from wganlab.statistics import ALPHA, between, holm, interval, seeds_needed

At = Literal["final", "best", "gap", "mean"]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Claim:
    """A sentence that runs decide: the mean over seeds of one number lies above, below or between bounds.

    The number is ``metric`` of ``arm``: after the last step, at its best, the gap between these two (collapse), or its
    mean over the run, or over one ``epoch`` of it. ``until`` takes a run as if it had ended there, at a number of
    steps, epochs or images; runs that are still being made longer count, too. With ``versus`` it is the difference to
    another arm with the same seed, with ``versus_epoch`` to another epoch, or with ``ratio`` the logarithm (base 10) of
    their ratio. With ``tracks`` it is instead the rank correlation of ``metric`` with another one over the run. Where a
    study sweeps over more than arms and seeds, the number is the mean over the other keys; ``where`` restricts the runs
    by their settings, and ``tuned`` takes the best run of each arm and seed instead of the mean. A best value, and so
    ``tuned``, takes a metric with a direction (:data:`wganlab.metrics.METRICS`).
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
        until: Mapping[Literal["step", "epoch", "images_seen"], PositiveInt] | None = None,
        versus: str | None = None,
        versus_epoch: PositiveInt | None = None,
        ratio: bool = False,
        tracks: str | None = None,
        where: Mapping[str, Any] | None = None,
        tuned: bool = False,
        above: Number | None = None,
        below: Number | None = None,
    ) -> None:
        self.says, self.source, self.metric, self.arm, self.at = says, source, metric, arm, at
        self.versus, self.ratio, self.tracks, self.where = versus, ratio, tracks, dict(where or {})
        self.tuned, self.epoch, self.versus_epoch = tuned, epoch, versus_epoch
        self.until = dict(until or {})
        if versus_epoch is not None and epoch is None:
            raise ValueError("versus_epoch needs epoch")
        if epoch is not None and (tracks or at != "final"):
            raise ValueError("epoch is a mean over an epoch; leave at and tracks out")
        if above is None and below is None:
            raise ValueError("needs above or below, or both: the numbers that would support it")
        self.low = -math.inf if above is None else above
        self.high = math.inf if below is None else below
        if metric_of(metric).direction is None and (tuned or (at in ("best", "gap") and not tracks)):
            asked = "tuned" if tuned else f"at={at}"
            raise ValueError(f"{asked} needs a metric with a best value; {metric} has only final and mean")
        if not self.low < self.high:
            raise ValueError(f"above={above:g} must be less than below={below:g}")

    @property
    def number(self) -> str:
        """The number that is measured, in words."""
        title = metric_of(self.metric).title
        if self.tracks:
            measured = f"rank correlation of {title} with {metric_of(self.tracks).title}"
        else:
            measured = {"final": "", "best": "best ", "gap": "last less best ", "mean": "mean "}[self.at] + title
        of, other = (f" in epoch {epoch}" if epoch else "" for epoch in (self.epoch, self.versus_epoch or self.epoch))
        arms = self.arm + of
        if self.versus or self.versus_epoch:
            arms += f" {'/' if self.ratio else '−'} {self.versus or self.arm}{other}"
        where = "".join(f", {key}={value}" for key, value in self.where.items())
        where += "".join(f", until {key.replace('_', ' ')} {value:,}" for key, value in self.until.items())
        tuned = ", each tuned" if self.tuned else ""
        return f"{'log10 of ' if self.ratio else ''}{measured}: {arms}{where}{tuned}"

    @property
    def wanted(self) -> str:
        """The numbers that support the claim, in words."""
        bounds = [f"above {self.low:g}"] * math.isfinite(self.low) + [f"below {self.high:g}"] * math.isfinite(self.high)
        return " and ".join(bounds)

    def values(self, runs: Sequence[Run]) -> dict[str, float]:
        """The number for each seed that has it."""
        first = self.measured(runs, self.arm, self.epoch)
        if not (self.versus or self.versus_epoch):
            return first
        second = self.measured(runs, self.versus or self.arm, self.versus_epoch or self.epoch)
        both = {seed: (first[seed], second[seed]) for seed in first if seed in second}
        if self.ratio:
            return {seed: math.log10(one / other) for seed, (one, other) in both.items() if one * other > 0}
        return {seed: one - other for seed, (one, other) in both.items()}

    def measured(self, runs: Sequence[Run], arm: str, epoch: int | None) -> dict[str, float]:
        """The number of one arm, in an epoch or the whole run, by seed.

        It is the mean, or when ``tuned`` the best, over the other keys of the sweep.
        """
        found: dict[str, list[float]] = {}
        for run in runs:
            if arm_of(run) != arm or any(setting(run, key) != str(value) for key, value in self.where.items()):
                continue
            value = self.of_run(run) if epoch is None else mean_over_epoch(run.rows, self.metric, epoch)
            if value is not None and math.isfinite(value):
                found.setdefault(str(run.config.get("seed")), []).append(value)
        best = max if metric_of(self.metric).direction == "higher" else min
        summarise = best if self.tuned else fmean
        return {seed: summarise(values) for seed, values in found.items()}

    def of_run(self, run: Run) -> float | None:
        """The number of one run; None where it was not measured, or the run is not complete."""
        made = run.rows
        for key, last in self.until.items():
            if not any(row.get(key, 0) >= last for row in made):
                return None
            made = [row for row in made if row.get(key, 0) <= last]
        if run.state != Status.COMPLETED and not self.until:
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
            return sum(row[self.metric] for row in rows) / len(rows)
        final, best = rows[-1][self.metric], final_and_best(rows)["best"].get(self.metric, {}).get("value")
        if self.at == "final" or best is None:
            return final if self.at == "final" else None
        return best if self.at == "best" else final - best


@dataclass(frozen=True)
class Verdict:
    """The decision on a claim. ``p`` is corrected for the number of claims of the study."""

    claim: Claim
    values: dict[str, float]
    p: float
    holds: bool
    more_seeds: int | None

    @property
    def decision(self) -> str:
        """holds, does not hold, or undecided."""
        if self.p >= ALPHA:
            return "undecided"
        return "holds" if self.holds else "does not hold"

    @property
    def description(self) -> str:
        """The decision, and the number of seeds that would decide an undecided claim."""
        if self.decision != "undecided":
            return self.decision
        if len(self.values) < 2:
            return f"undecided (seeds with {self.claim.metric}: {len(self.values)}; it takes two)"
        if self.more_seeds is None:
            return "undecided (a thousand seeds would not decide it)"
        more = max(1, self.more_seeds)
        return f"undecided (about {more} more seed{'s' * (more > 1)})"

    @property
    def measured(self) -> str:
        """Mean and 95% interval over the seeds, in words."""
        mean, low, high = interval(list(self.values.values()))
        if not self.values:
            return "not measured"
        return f"{mean:.3g}" + (f" [{low:.3g}, {high:.3g}]" if len(self.values) > 1 else "")

    def record(self) -> dict[str, Any]:
        """For verdicts.json."""
        mean, low, high = interval(list(self.values.values()))
        return {
            "claim": self.claim.says,
            "source": self.claim.source,
            "number": self.claim.number,
            "wanted": self.claim.wanted,
            "mean": mean,
            "interval": [low, high],
            "values": self.values,
            "p": self.p,
            "verdict": self.decision,
        }


def read_claims(contents: Sequence[Mapping[str, Any]], arms: Sequence[str], where: str) -> list[Claim]:
    """The claims of a study.yaml. Raises ConfigError for a wrong claim, and for an arm that the study does not have."""
    claims = []
    for i, content in enumerate(contents):
        key = f"{where}: claims[{i}]."
        converted = check_call(Claim, content, key)
        try:
            claim = Claim(**dict(content) | {name.removeprefix(key): value for name, value in converted.items()})
        except ValueError as error:
            raise ConfigError(key.rstrip("."), f": {error}") from error
        for name in ("arm", "versus"):
            value = getattr(claim, name)
            if value is not None and value not in arms:
                raise ConfigError(f"{key}{name}", f"={value}: no such arm; allowed are {', '.join(arms)}")
        claims.append(claim)
    return claims


def decide(claims: Sequence[Claim], runs: Sequence[Run]) -> list[Verdict]:
    """The verdict of each claim; the chance that any of them is wrong is at most ALPHA."""
    values = [claim.values(runs) for claim in claims]
    answers = [between(list(v.values()), c.low, c.high) for c, v in zip(claims, values, strict=True)]
    corrected = holm([p for _, p in answers])
    verdicts = []
    for claim, found, (holds, _), p in zip(claims, values, answers, corrected, strict=True):
        needed = seeds_needed(list(found.values()), claim.low, claim.high, alpha=ALPHA / len(claims))
        verdicts.append(Verdict(claim, found, p, holds, needed and needed - len(found)))
    return verdicts


def conclusion(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts and the cost of their runs, for verdicts.json."""
    summaries = [run.summary for run in runs if run.summary]
    return {
        "runs": len(summaries),
        "steps": max((summary["steps"] for summary in summaries), default=0),
        "seconds": sum(summary["seconds"] for summary in summaries),
        "commits": sorted({summary["commit"] or "unknown" for summary in summaries}),
        "devices": sorted({f"{summary['device']}, {summary['threads']} threads" for summary in summaries}),
        "finished": max((str(run.status.get("finished")) for run in runs if run.summary), default=None),
        "claims": [verdict.record() for verdict in verdicts],
    }


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in Markdown."""
    lines = ["| claim | source | number | supported if | measured, 95% interval | seeds | verdict |"]
    lines.append("|---|---|---|---|---|---:|---|")
    for verdict in verdicts:
        claim = verdict.claim
        cells = [claim.says, claim.source, claim.number, claim.wanted, verdict.measured, str(len(verdict.values))]
        lines.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, f"**{verdict.description}**"]) + " |"
        )
    return "\n".join(lines) + "\n"


def arm_of(run: Run) -> str | None:
    """The arm of a study that a run belongs to."""
    return run.overrides.get("arms")
