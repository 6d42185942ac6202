"""Claims of a study. :mod:`wganlab.report.measured` takes the numbers from its runs that decide them, and
:mod:`wganlab.report.verdicts` decides."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from wganlab.checks import check_call
from wganlab.metrics import metric_of
from wganlab.schema import ConfigError
from wganlab.statistics import Test, share_test, sign_flip_test, sign_test, signed_rank_test, t_test

At = Literal["final", "best", "gap", "mean"]
Number = Annotated[float, Field(allow_inf_nan=False)]
HOLDS, SMALL, EQUAL, FAILS = "holds", "holds but is small", "practically equal", "does not hold"
UNDECIDED, PROVISIONAL = "undecided", "provisional"
#: The metric of a claim on the share of runs that diverge: 1 for a run that did, else 0.
DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
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

    says: str
    source: str
    metric: str
    arm: str
    at: At = "final"
    epoch: PositiveInt | None = None
    until: Mapping[Literal["step", "epoch", "images_seen", "seconds"], PositiveInt] = field(default_factory=dict)
    reaches: Number | None = None
    versus: str | None = None
    versus_epoch: PositiveInt | None = None
    ratio: bool = False
    tracks: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    above: Number | None = None
    below: Number | None = None
    diverged: Literal["worst"] | None = None
    matters: PositiveFloat | None = None
    headline: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for keys that contradict each other, and for any that would be passed over."""
        directed = metric_of(self.metric).direction is not None
        of_epoch, whole = self.epoch is not None, self.tracks or self.at != "final"
        bounds = [bound for bound in (self.above, self.below) if bound is not None]
        wrong = {
            "needs above or below, or both: the numbers that would support it": not bounds,
            f"above={self.low:g} must be less than below={self.high:g}": not self.low < self.high,
            f"versus={self.versus} must be another arm": self.versus == self.arm,
            "versus_epoch needs epoch": self.versus_epoch is not None and not of_epoch,
            "ratio needs versus, or versus_epoch": self.ratio and not self.paired,
            "epoch is a mean over it; leave at, until and tracks out": of_epoch and (whole or self.until),
            "tracks is over the whole run; leave at out": self.tracks and self.at != "final",
            "matters is a distance from one bound, not from two": self.matters and len(bounds) > 1,
            f"at={self.at} needs a metric with a best value; {self.metric} has only final and mean": (
                not directed and self.at in ("best", "gap")
            ),
            "reaches needs a final or best value that has a direction, and no ratio": self.reaches is not None
            and (not directed or self.tracks or self.ratio or of_epoch or self.at in ("gap", "mean")),
            "metric=diverged is 0 or 1 for a run; leave at, epoch, tracks and ratio out": self.metric == DIVERGED
            and (whole or of_epoch or self.ratio),
            f"diverged={self.diverged} needs a metric with a worst value; {self.tracks or self.metric} has none": (
                self.diverged and (self.tracks or not directed)
            ),
            "a share lies between 0 and 1, and so do its bounds": self.of_shares
            and not self.paired
            and not all(0 <= bound <= 1 for bound in bounds),
            # McNemar's test is exact there alone
            "a difference of shares is tested against 0 alone; leave other bounds and matters out": self.of_shares
            and self.paired
            and (any(bounds) or self.matters),
        }
        if faults := [text for text, found in wrong.items() if found]:
            raise ValueError(faults[0])

    @property
    def low(self) -> float:
        """The bound that the centre is to be above."""
        return -math.inf if self.above is None else self.above

    @property
    def high(self) -> float:
        """The bound that the centre is to be below."""
        return math.inf if self.below is None else self.below

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


def read_claims(
    contents: Sequence[Mapping[str, Any]], arms: Sequence[str], where: str, *, matters: float | None = None
) -> list[Claim]:
    """The claims of a study.yaml; ``matters``, in decades, is that of ratios which do not say themselves.

    Raises ConfigError for a wrong claim, for an arm that the study does not have, and for the words of another claim.
    """
    claims: list[Claim] = []
    for i, content in enumerate(contents):
        key = f"{where}: claims[{i}]."
        if matters and content.get("ratio") and not {"above", "below"} <= content.keys():
            content = {"matters": matters} | dict(content)
        converted = check_call(Claim, content, key)
        try:
            given = dict(content) | {name.removeprefix(key): value for name, value in converted.items()}
            claim = Claim(**given | {"says": " ".join(content["says"].split())})
        except ValueError as error:
            raise ConfigError(key.rstrip("."), f": {error}") from error
        for name in ("arm", "versus"):
            value = getattr(claim, name)
            if value is not None and value not in arms:
                raise ConfigError(f"{key}{name}", f"={value}: no such arm; allowed are {', '.join(arms)}")
        if claim.says in (other.says for other in claims):
            raise ConfigError(f"{key}says", f"={claim.says}: another claim says so, too; each takes words of its own")
        claims.append(claim)
    return claims
