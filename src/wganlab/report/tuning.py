"""Tuning fairness: the best score of each arm when all have the same number of trials of their hyperparameters."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import matplotlib as mpl
from matplotlib.figure import Figure

from wganlab.metrics import metric_of, objective_of
from wganlab.report.figures import STYLE, as_text, colours
from wganlab.report.tables import Table, markdown
from wganlab.runs import Run, Status
from wganlab.statistics import interval
from wganlab.tune import Search, Setting

#: Runs with fewer trials than this are no tuning.
MIN_TRIALS = 3

Curve = list[tuple[float, float, float]]


def expected_best(values: Sequence[float], k: int) -> float:
    """The smallest of k values, averaged over all sets of k of the values."""
    n = len(values)
    # the i-th smallest is the best of a set of k when the other k - 1 come from those above it
    sets = ((value, math.comb(n - 1 - i, k - 1)) for i, value in enumerate(sorted(values)))
    return sum(value * times for value, times in sets if times) / math.comb(n, k)


def curves(runs: Sequence[Run], search: Search | None = None) -> tuple[str, dict[str, Curve]]:
    """The tuned score, and by arm the mean and its 95% interval over seeds of the best of 1, 2, ... trials.

    The trials are the runs of the ``search`` of a study, whose score it is; else ``runs``, by what searches minimise.

    An arm is one of a study, or a search by Optuna. A run that diverged is a trial with the worst score. The trials of
    a grid have no order, so the best of k is the mean over all sets of k of them. A search learns from trial to trial,
    so the best of k is that of its first k. Empty unless every arm has MIN_TRIALS trials with each seed, all scored by
    one protocol.
    """
    if search:
        return search.tune.score, curves_of_search(search)
    groups: dict[str, dict[object, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        arm = run.overrides.get("arms") or run.choices.get("search")
        if arm and (run.state == Status.COMPLETED or run.diverged):
            groups[arm][run.config.get("seed")].append(run)
    objective = objective_of({key: value for run in runs for key, value in run.summary.get("final", {}).items()})
    metric = objective[0] if objective else ""

    def score(run: Run) -> float:
        """Of a trial: lower is better."""
        value = run.summary.get("final", {}).get(metric)
        return math.inf if value is None else value

    protocols = {run.protocol.get("id") for run in runs if run.summary}
    if (
        not metric
        or len(protocols) > 1
        or min((len(trials) for seeds in groups.values() for trials in seeds.values()), default=0) < MIN_TRIALS
    ):
        return metric, {}
    sign = metric_of(metric).sign
    return metric, {
        arm: curve([[sign * best for best in best_of_first(trials, score)] for trials in seeds.values()])
        for arm, seeds in groups.items()
    }


def curves_of_search(search: Search) -> dict[str, Curve]:
    """The curve of each arm, of which a trial has the mean score of its runs; empty where an arm has too few trials."""
    sign, found = metric_of(search.tune.score).sign, dict[str, Curve]()
    for arm in dict.fromkeys(run.overrides.get("arms", "") for run in search.runs):
        scores = [fmean(map(search.score, runs)) for runs in search.trials(arm).values()]
        if len(scores) < MIN_TRIALS:
            return {}
        found[arm] = curve([[sign * expected_best(scores, k + 1) for k in range(len(scores))]])
    return found


def best_of_first(trials: Sequence[Run], score: Callable[[Run], float]) -> list[float]:
    """The best score of 1, 2, ... of the trials of one seed: a list as long as the trials."""
    if "search" in trials[0].choices:
        trials = sorted(trials, key=lambda run: str(run.status.get("started")))
    values = [*map(score, trials)]
    if "search" in trials[0].choices:
        return list(itertools.accumulate(values, min))
    return [expected_best(values, k + 1) for k in range(len(values))]


def curve(seeds: Sequence[Sequence[float]]) -> Curve:
    """Mean and interval over seeds, for each number of trials that all seeds have."""
    together = zip(*seeds, strict=False)
    return [interval(values) if all(map(math.isfinite, values)) else (sum(values),) * 3 for values in together]


def figure(runs: Sequence[Run], search: Search | None = None) -> Figure | None:
    """The curves, the score on a logarithmic axis; None where nothing was tuned."""
    metric, found = curves(runs, search)
    if not found:
        return None
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = drawn.add_subplot(xlabel="trials of the hyperparameters", yscale="log")
        for arm, colour in colours(list(found)).items():
            mean, low, high = zip(*found[arm], strict=True)
            trials = range(1, len(mean) + 1)
            axes.plot(trials, mean, color=colour, marker="o", ms=3, label=as_text(arm))
            axes.fill_between(trials, low, high, color=colour, alpha=0.2, lw=0)
        axes.set_title(f"{metric_of(metric).title}: best of so many trials", fontsize=10, loc="left")
        axes.legend(fontsize=8)
    return drawn


def table(runs: Sequence[Run], search: Search | None = None) -> str:
    """The curves in Markdown; empty where nothing was tuned."""
    metric, found = curves(runs, search)
    if not found:
        return ""
    columns = itertools.zip_longest(*found.values())
    rows = [[str(k), *map(trial_cell, row)] for k, row in enumerate(columns, start=1)]
    return f"{markdown(Table(['trials', *found], rows))}\nBest {metric_of(metric).title} of so many trials.\n"


def trial_cell(point: tuple[float, float, float] | None) -> str:
    """Mean ± half the interval over seeds; a dash where an arm has fewer trials."""
    if point is None:
        return "–"
    mean, low, high = point
    return f"{mean:.3g} ± {(high - low) / 2:.2g}" if high > low else f"{mean:.3g}"


def settings_table(found: Mapping[str, Setting]) -> str:
    """The settings that a search found best, by arm, in Markdown."""
    rows = []
    for arm, setting in found.items():
        edges = {key: " **(edge)**" if key in setting.edges else "" for key in setting.values}
        values = ", ".join(f"{key} = {value}{edges[key]}" for key, value in setting.values.items())
        rows.append([arm, str(setting.trial), f"{setting.score:.4g}", values])
    return markdown(Table(["arm", "trial", "score", "setting"], rows, "lrrl"))
