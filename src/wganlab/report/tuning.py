"""Tuning fairness: what each arm comes to when all are allowed the same number of trials of their hyperparameters."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from wganlab.metrics import METRICS
from wganlab.report.figures import STYLE, colours
from wganlab.runs import Run
from wganlab.statistics import interval

#: Fewer trials than this are no tuning.
FEWEST = 4

Curve = list[tuple[float, float, float]]


def expected_best(values: Sequence[float], k: int) -> float:
    """Mean over all sets of k of the values of the smallest in the set."""
    n = len(values)
    # the i-th smallest is the best of a set of k when the other k - 1 come from those above it
    sets = ((value, math.comb(n - 1 - i, k - 1)) for i, value in enumerate(sorted(values)))
    return sum(value * times for value, times in sets if times) / math.comb(n, k)


def curves(runs: Sequence[Run]) -> tuple[str, dict[str, Curve]]:
    """The score that was tuned, and for each arm mean, low and high end (95%, over seeds) of the best of 1, 2, ...
    trials.

    An arm is that of a study, or a search by Optuna; a trial is a run of it, and its score the last one. Those of a
    grid are taken in any order, and the best of k is expected over all; a search learns from trial to trial, so of its
    trials the first k are taken. A run that diverged is a trial, too, and the worst one. Empty unless every arm has
    FEWEST trials of each seed, all scored by one protocol.
    """
    groups: dict[str, dict[object, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        arm = run.overrides.get("arms") or run.choices.get("search")
        diverged = str(run.status.get("error")).startswith("FloatingPointError")
        if arm and (run.status["state"] == "completed" or diverged):
            groups[arm][run.config.get("seed")].append(run)
    scores = [run.summary.get("final", {}) for run in runs]
    metric = next((name for name in ("eval/fid", "eval/emd") if any(name in score for score in scores)), "")
    protocols = {run.protocol.get("id") for run in runs if run.summary}
    if (
        not metric
        or len(protocols) > 1
        or min((len(trials) for seeds in groups.values() for trials in seeds.values()), default=0) < FEWEST
    ):
        return metric, {}
    return metric, {arm: curve([bests(trials, metric) for trials in seeds.values()]) for arm, seeds in groups.items()}


def bests(trials: Sequence[Run], metric: str) -> list[float]:
    """The best of 1, 2, ... of the trials of one seed."""
    if "search" in trials[0].choices:
        trials = sorted(trials, key=lambda run: str(run.status.get("started")))
    values = [run.summary.get("final", {}).get(metric, math.inf) for run in trials]
    if "search" in trials[0].choices:
        return list(itertools.accumulate(values, min))
    return [expected_best(values, k + 1) for k in range(len(values))]


def curve(seeds: Sequence[Sequence[float]]) -> Curve:
    """Mean and interval over seeds for each number of trials that all of them have."""
    together = zip(*seeds, strict=False)
    return [interval(values) if all(map(math.isfinite, values)) else (math.inf,) * 3 for values in together]


def figure(runs: Sequence[Run]) -> Figure | None:
    """The curves, the score on a logarithmic axis; None where nothing was tuned."""
    metric, found = curves(runs)
    if not found:
        return None
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = drawn.add_subplot(xlabel="trials of the hyperparameters", yscale="log")
        for arm, colour in colours(list(found)).items():
            mean, low, high = zip(*found[arm], strict=True)
            trials = range(1, len(mean) + 1)
            axes.plot(trials, mean, color=colour, marker="o", ms=3, label=arm)
            axes.fill_between(trials, low, high, color=colour, alpha=0.2, lw=0)
        axes.set_title(f"{METRICS[metric].title}: best of so many trials", fontsize=10, loc="left")
        axes.legend(fontsize=8)
    return drawn


def table(runs: Sequence[Run]) -> str:
    """The curves in Markdown; empty where nothing was tuned."""
    metric, found = curves(runs)
    if not found:
        return ""
    lines = [f"| trials | {' | '.join(found)} |", "|---:|" + "---:|" * len(found)]
    for k, row in enumerate(itertools.zip_longest(*found.values())):
        cells = [f"{one[0]:.3g} ± {(one[2] - one[1]) / 2:.2g}" if one and one[2] > one[1] else
                 f"{one[0]:.3g}" if one else "–" for one in row]  # fmt: skip
        lines.append(f"| {k + 1} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nBest {METRICS[metric].title} of so many trials.\n"
