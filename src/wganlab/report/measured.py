"""The numbers of runs that decide the claims of a study, and why some have none."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from wganlab.metrics import metric_of
from wganlab.report.claims import DIVERGED, Claim
from wganlab.report.compare import BUDGETS, PLACE, setting
from wganlab.report.epochs import mean_over_epoch, mean_over_steps
from wganlab.runs import Row, Run, Status, final_and_best, load_yaml

#: A run's overrides of what else is swept.
Settings = tuple[tuple[str, str], ...]


class Measured(NamedTuple):
    """What a claim is decided from: the number of each seed that has it, how many of the runs diverged, why they
    cannot be put together, where they cannot, and by seed why its completed run has no number."""

    values: Mapping[str, float]
    n_diverged: int = 0
    objection: str | None = None
    missing: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def of(cls, claim: Claim, runs: Sequence[Run]) -> "Measured":
        """From the runs of a study."""
        there = [run for arm in claim.arms for run in of_arm(claim, runs, arm)]
        told = swept(there)
        found = values(claim, told)
        reasons = [(str(run.config.get("seed")), without(claim, run, found)) for run in reversed(there)]
        missing = {seed: said for seed, said in reasons if said}  # the first of each seed
        why = objection(claim, told)
        if not there and any(run.overrides.get("arms") in claim.arms for run in runs):
            why = f"no run has {' and '.join(f'{key}={value}' for key, value in claim.where.items())}"
        return cls(found, sum(has_diverged(claim, run) for run in there), why, missing)

    @classmethod
    def recorded(cls, claim: Claim, record: Mapping[str, Any]) -> "Measured":
        """From a verdicts.json; nothing where it has another number in the place of the claim's."""
        found: Mapping[str, Any] = next((one for one in record["claims"] if one["number"] == claim.number), {})
        numbers = {seed: float(value) for seed, value in found.get("values", {}).items()}
        return cls(numbers, found.get("diverged", 0), found.get("objection"))


def values(claim: Claim, runs: Sequence[tuple[Run, Settings]]) -> dict[str, float]:
    """The number for each seed that has it; infinite where a run diverged that counts as the worst."""
    first = by_seed(claim, claim.arm, runs, claim.epoch)
    if not claim.paired:
        return first
    second = by_seed(claim, claim.versus or claim.arm, runs, claim.versus_epoch or claim.epoch)
    pairs = {seed: compared(claim, first[seed], second[seed]) for seed in first if seed in second}
    return {seed: value for seed, value in pairs.items() if not math.isnan(value)}


def compared(claim: Claim, one: float, other: float) -> float:
    """Difference or logarithm of the ratio; 0 where both are the worst, not a number where there is no ratio.

    Of losses below zero it is the ratio of their sizes; a score at or below zero, such as KID may be, has none.
    """
    if math.isinf(one) or math.isinf(other):
        return 0.0 if one == other else one - other
    if not claim.ratio:
        return one - other
    negative = one < 0 and metric_of(claim.metric).protocol is not None
    return math.log10(one / other) if one * other > 0 and not negative else math.nan


def by_seed(claim: Claim, arm: str, runs: Sequence[tuple[Run, Settings]], epoch: int | None) -> dict[str, float]:
    """The number of one arm, in an epoch or the whole run, by seed: the mean over all settings of what else is swept.

    A seed without a number at one of them has none: a mean over the others would be that of another question.
    """
    wanted = {settings for _, settings in runs}
    found: dict[str, dict[Settings, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, settings in runs:
        if run.overrides["arms"] != arm:
            continue
        value = of_run(claim, run) if epoch is None else mean_over_epoch(run.rows, claim.metric, epoch)
        if claim.diverged and run.diverged and value is None:
            value = metric_of(claim.metric).sign * math.inf if claim.reaches is None else 0.0
        if value is not None and not math.isnan(value):
            found[str(run.config.get("seed"))][settings].append(value)
    whole = {seed: of_seed.values() for seed, of_seed in found.items() if of_seed.keys() == wanted}
    return {seed: fmean(value for several in of_seed for value in several) for seed, of_seed in whole.items()}


def of_arm(claim: Claim, runs: Sequence[Run], arm: str) -> list[Run]:
    """The runs of an arm that the claim is about."""
    return [
        run
        for run in runs
        if run.overrides.get("arms") == arm
        and all(equal(setting(run, key), value) for key, value in claim.where.items())
    ]


def swept(runs: Sequence[Run]) -> list[tuple[Run, Settings]]:
    """Each run, and what tells it from others of its arm and seed: its overrides of what differs among such runs.

    The place of the same data, and what all runs of a seed were given, tell none apart.
    """
    given: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for run in runs:
        for key, value in run.overrides.items():
            if key not in BUDGETS and not (PLACE.match(key) and "/" in value):
                given[run.overrides["arms"], str(run.config.get("seed")), key].add(value)
    keys = sorted({key for (_, _, key), found in given.items() if len(found) > 1})
    return [(run, tuple((key, run.overrides[key]) for key in keys if key in run.overrides)) for run in runs]


def equal(found: str, wanted: Any) -> bool:
    """Whether the setting of a run is what a study.yaml names, however either is written."""
    try:
        return bool(load_yaml(found) == wanted or float(found) == float(wanted))
    except (yaml.YAMLError, TypeError, ValueError):
        return found == str(wanted)


def has_diverged(claim: Claim, run: Run) -> bool:
    """Whether a run diverged before it was as long as the claim asks."""
    return run.diverged and rows_of(claim, run) is None


def objection(claim: Claim, runs: Sequence[tuple[Run, Settings]]) -> str | None:
    """Why the runs of a claim cannot be put together, in words; None where they can.

    All arms must have been run with all settings, and the seeds of an arm be of one length, unless the claim says at
    which they are read. Scores must be of one protocol where settings are equal.
    """
    completed = [pair for pair in runs if pair[0].state == Status.COMPLETED]
    arms: dict[str, set[Settings]] = defaultdict(set)
    for run, settings in runs:
        arms[run.overrides["arms"]].add(settings)
    wanted = set().union(*arms.values())
    for arm, made in arms.items():
        if missing := sorted(wanted - made):
            said = " ".join(f"{key}={value}" for key, value in missing[0]) or "the settings of the study"
            return f"{arm} has not been run with {said}, as others have been, and no where says which are meant"
    seeds = Counter((run.overrides["arms"], run.config.get("seed")) for run, _ in runs)
    if claim.of_shares and max(seeds.values(), default=0) > 1:
        return "several runs of one seed, of which a share is none, and no where that says which"
    for key in () if claim.until or claim.epoch else BUDGETS:
        lengths: dict[Any, set[str]] = defaultdict(set)
        for run, settings in completed:
            lengths[run.overrides["arms"], settings].add(setting(run, key))
        if different := [of_group for of_group in lengths.values() if len(of_group) > 1]:
            return f"runs of {' and '.join(sorted(different[0]))} {key}, and no until that says where to read them"
    protocols: dict[Settings, set[str | None]] = defaultdict(set)
    for run, settings in completed:
        protocols[settings].add(run.protocol.get("id"))
    if metric_of(claim.metric).protocol is not None and any(len(ids) > 1 for ids in protocols.values()):
        return "scores of different protocols"
    return None


def without(claim: Claim, run: Run, found: Mapping[str, float]) -> str | None:
    """Why the seed of a completed run has no number, in words; None where it has one, or the run is not the reason."""
    if run.state != Status.COMPLETED or str(run.config.get("seed")) in found:
        return None
    who = f"seed {run.config.get('seed')} of {run.overrides['arms']}"
    made = rows_of(claim, run)
    if made is None:
        return f"{who} is shorter than until asks"
    if missing := [name for name in (claim.metric, claim.tracks) if name and not any(name in row for row in made)]:
        return None if missing == [DIVERGED] else f"{who} has no {missing[0]}"
    if (number := of_run(claim, run)) is None and claim.epoch is None:
        return f"{who} has {'too few rows with both' if claim.tracks else f'no finite {claim.metric} at its end'}"
    if claim.ratio and number is not None and number <= 0 and metric_of(claim.metric).protocol is not None:
        return f"{who} has {number:.3g}, of which there is no ratio"
    return None


def of_run(claim: Claim, run: Run) -> float | None:
    """The number of one run; None where it was not measured, or the run is not complete."""
    value = value_of(claim, run)
    if claim.reaches is None or value is None:
        return value
    sign = metric_of(claim.metric).sign
    return float(sign * value <= sign * claim.reaches)


def value_of(claim: Claim, run: Run) -> float | None:
    """The value that a run reached, or None."""
    made = rows_of(claim, run)
    if claim.metric == DIVERGED:
        return float(has_diverged(claim, run)) if run.diverged or made is not None else None
    if made is None:
        return None
    rows = [row for row in made if claim.metric in row]
    if claim.tracks:
        pairs = [(row[claim.metric], row[claim.tracks]) for row in rows if claim.tracks in row]
        if len(pairs) < 3:
            return None
        from scipy.stats import spearmanr  # takes a second to import

        return float(spearmanr(*zip(*pairs, strict=True)).statistic)
    if not rows:
        return None
    if claim.at == "mean":
        return mean_over_steps(rows, claim.metric)
    if claim.at in ("final", "gap") and run.is_lost(claim.metric, made):
        return None
    final, best = rows[-1][claim.metric], final_and_best(rows)["best"].get(claim.metric, {}).get("value")
    if claim.at == "final" or best is None:
        return final if claim.at == "final" else None
    return best if claim.at == "best" else final - best


def rows_of(claim: Claim, run: Run) -> list[Row] | None:
    """The rows of a run that is as long as the claim asks, as if it had ended there; None of another."""
    made = run.rows
    for key, last in claim.until.items():
        if not any(row.get(key, 0) >= last for row in made):
            return None
        made = [row for row in made if row.get(key, 0) <= last]
    return made if claim.until or run.state == Status.COMPLETED else None
