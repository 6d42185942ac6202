"""Tune, then test on fresh seeds: a random search for the setting of each arm, before the seeds of a study are run.

Every arm gets the same number of trials (Lucic et al. 2018, arXiv 1711.10337). What is best is frozen, and trained
with seeds that the search has not seen. A claim is about those alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

import yaml
from pydantic import NonNegativeInt, PositiveInt

from wganlab.metrics import metric_of
from wganlab.overrides import parse, split_sweep
from wganlab.ranges import drawn, is_at_edge, ranges_in
from wganlab.runs import Run, Status, find_runs
from wganlab.schema import ConfigError


class FinalScore:
    """Selects the trial whose score after the last step is best: what a user gets who trains with its setting."""

    def __call__(self, run: Run, metric: str) -> float | None:
        return run.outcome["final"].get(metric)


class BestScore:
    """Selects the trial whose score was best at any evaluation: what a user gets who keeps the best checkpoint."""

    def __call__(self, run: Run, metric: str) -> float | None:
        return run.outcome["best"].get(metric, {}).get("value")


RULES: dict[str, Callable[[Run, str], float | None]] = {rule.__name__: rule() for rule in (FinalScore, BestScore)}


@dataclass(frozen=True, kw_only=True)
class Tune:
    """How the arms of a study are tuned: ``trials`` draws of the ranges in their YAMLs (:mod:`wganlab.ranges`).

    Each is one run with ``seed``, and its ``score`` counts as ``rule`` says; a run that diverges has the worst.
    ``sweep`` changes the sweep of the study for the search: fewer steps, say. Where more is swept than arms and trials,
    the score of a trial is the mean over the rest.
    """

    trials: PositiveInt
    seed: NonNegativeInt = 1000
    score: str = "eval/fid"
    rule: Literal["FinalScore", "BestScore"] = "FinalScore"
    sweep: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if own := [key for key in self.sweep if key in ("seed", "arms", "trial", "hydra.sweep.dir")]:
            raise ConfigError(f"tune.sweep.{own[0]}", ": is the search's own; its seed is tune.seed")
        if metric_of(self.score).direction is None:
            raise ConfigError("tune.score", f"={self.score}: has no best value")

    def __str__(self) -> str:
        return f"{self.trials} trials of each arm by random search, one run each (seed {self.seed}), by {self.rule}"


class Setting(NamedTuple):
    """What a search has found for an arm: the number of the trial, its score, and the values that it drew.

    ``edges`` are the keys whose values lie near an end of their range, so that more may be found beyond.
    """

    trial: int
    score: float
    values: dict[str, object]
    edges: list[str]

    def __str__(self) -> str:
        edges = dict.fromkeys(self.edges, " (at an edge of its range)")
        values = ", ".join(f"{key}={value}{edges.get(key, '')}" for key, value in self.values.items())
        return f"trial {self.trial}, {self.score:.4g}: {values}"


def arm_ranges(folder: Path, arm: str) -> dict[str, str]:
    """Key -> range of what is tuned of an arm: in its YAML, and in those beside study.yaml that arms share.

    Raises ConfigError where there is none.
    """
    found: dict[str, str] = {}
    for path in [*sorted(folder.glob("*.yaml")), folder / "arms" / f"{arm}.yaml"]:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found |= ranges_in(content) if isinstance(content, dict) and path.name != "study.yaml" else {}
    if not found:
        advice = "such as lr: ${log_uniform:1e-5,1e-2}"
        raise ConfigError(f"{folder / 'arms' / arm}.yaml", f": has no range to tune, {advice}")
    return found


class Search(NamedTuple):
    """How the arms of a study were tuned, and its runs."""

    tune: Tune
    runs: Sequence[Run]

    def trials(self, arm: str) -> dict[int, list[Run]]:
        """The finished runs of each trial of an arm that has all of them: others are not to be compared by a mean."""
        found: dict[int, list[Run]] = {}
        for run in self.runs:
            own = run.overrides.get("arms") == arm and run.config.get("seed") == self.tune.seed
            if own and (run.diverged or run.state == Status.COMPLETED):
                found.setdefault(int(run.config["trial"]), []).append(run)
        most = max(map(len, found.values()), default=0)
        return {trial: runs for trial, runs in sorted(found.items()) if len(runs) == most}

    def score(self, run: Run) -> float:
        """The score of a trial, signed so that lower is better; infinite of one that diverged or was not scored."""
        score = None if run.diverged else RULES[self.tune.rule](run, self.tune.score)
        return math.inf if score is None else metric_of(self.tune.score).sign * score


def settings(search: Search, ranges: Mapping[str, Mapping[str, str]]) -> dict[str, Setting]:
    """The best setting of each arm, from the runs of the search. Raises ConfigError where trials are missing."""
    tune, found = search.tune, dict[str, Setting]()
    for arm, of_arm in ranges.items():
        trials = search.trials(arm)
        if missing := [trial for trial in range(tune.trials) if trial not in trials]:
            which = ", ".join(map(str, missing))
            raise ConfigError("tune", f": of arm {arm}, trials are missing or have failed: {which}; run it again")
        scores = {trial: fmean(map(search.score, of_trial)) for trial, of_trial in trials.items()}
        trial = min(scores, key=scores.__getitem__)
        score, config = scores[trial], trials[trial][0].config
        if math.isinf(score):
            raise ConfigError("tune", f": of arm {arm}, no trial has a {tune.score}")
        values = {key: drawn(config, key) for key in of_arm}
        edges = [key for key, text in of_arm.items() if is_at_edge(key, text, trial)]
        found[arm] = Setting(trial, metric_of(tune.score).sign * score, values, edges)
    return found


def tuned_sweeps(folder: Path, tune: Tune, arguments: Sequence[str], where: str) -> Iterator[list[str]]:
    """The multiruns of a study that tunes: the search, and once it is made, each arm at its best setting.

    Raises ConfigError where an arm has no range, or trials are missing.
    """
    arms = [job[0].partition("=")[2] for job in split_sweep(parse([one for one in arguments if "arms=" in one]))]
    ranges = {arm: arm_ranges(folder, arm) for arm in arms}
    print(f"tuning: {tune}", flush=True)
    search = {"seed": tune.seed, **tune.sweep, "trial": f"range({tune.trials})", "hydra.sweep.dir": tuning_dir(where)}
    yield replaced(arguments, search)
    for arm, setting in settings(searched(tune, where) or Search(tune, []), ranges).items():
        print(f"{arm}: {setting}", flush=True)
        yield replaced(arguments, {"+arms": arm, "trial": setting.trial})


def tuning_dir(where: str | Path) -> str:
    """Where the search of a study is, whose seeds are elsewhere."""
    return f"{where}_tuning"


def searched(tune: Tune | None, where: str | Path) -> Search | None:
    """The search of a study; None where it does not tune, or has not begun to. Trials of a longer one are left out."""
    if tune is None or not Path(tuning_dir(where)).is_dir():
        return None
    return Search(tune, [run for run in find_runs([tuning_dir(where)]) if run.config.get("trial", 0) < tune.trials])


def replaced(arguments: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Overrides with other values of some keys."""
    kept = [argument for argument in arguments if argument.partition("=")[0] not in values]
    return [*kept, *(f"{key}={value}" for key, value in values.items())]
