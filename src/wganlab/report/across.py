"""Several studies of the same arms, on other data each: which arm is better, over all of them.

The scores are those of scores.csv, which stands beside each published study. Data sets count alike, and arms are
compared by order alone or by ratios, so that no data set's scale matters (rliable, Agarwal et al. 2021, arXiv
2108.13264).
"""

import csv
import itertools
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from wganlab.files import write_text
from wganlab.metrics import METRICS, metric_of
from wganlab.report.compare import budget, last_step, to_csv
from wganlab.report.figures import STYLE, as_text, colours, svg
from wganlab.report.tables import Table, markdown
from wganlab.runs import Run, Status
from wganlab.schema import ConfigError
from wganlab.statistics import ALPHA, MIN_SEEDS

#: Resamples of the seeds.
RESAMPLES = 10_000

#: Arm -> the score of each seed, signed so that lower is better; infinite of a run that diverged.
Scores = Mapping[str, np.ndarray]
#: The scores on several data sets.
DataSets = Mapping[str, Scores]


class Improvement(NamedTuple):
    """The probability that one arm is better than another, and its interval."""

    probability: float
    low: float
    high: float


def scores_csv(runs: Sequence[Run], arms: Sequence[str]) -> str:
    """The scores of every run after its last step, a row each: what verdicts and summaries are made of."""
    found = []
    for run, arm in zip(runs, arms, strict=True):
        if run.diverged or run.state == Status.COMPLETED:
            state = "diverged" if run.diverged else "completed"
            length = {"steps": int(last_step(run)), "budget": int(budget(run))}
            keys = {"arm": arm, "seed": run.config.get("seed"), "state": state} | length
            found.append((keys, run.outcome["final"]))
    scored = [name for name, metric in METRICS.items() if metric.protocol and any(name in final for _, final in found)]
    return to_csv(
        [
            keys | {name: f"{final[name]:.6g}" if name in final else "" for name in scored}
            for keys, final in sorted(found, key=lambda row: [str(value) for value in row[0].values()])
        ]
    )


def read_scores(folder: Path, metric: str) -> Scores:
    """Arm -> the scores of its seeds, from the scores.csv of a published study.

    Of runs of different budgets, these are those of the length that most of an arm's runs have, and those that
    diverged. Raises ConfigError where it has none, or not of this metric.
    """
    path = folder / "scores.csv"
    if not path.is_file():
        raise ConfigError(str(path), f": no such file; wganlab study --publish {shlex.quote(folder.name)} writes it")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or metric not in rows[0]:
        raise ConfigError(str(path), f": has no column {metric}")
    completed = [row for row in rows if row["state"] == "completed"]
    lengths: dict[str, Counter[int]] = {}
    for row in sorted(completed, key=steps_of, reverse=True):  # of two that are as frequent, the longer
        lengths.setdefault(row["arm"], Counter())[steps_of(row)] += 1
    usual = {arm: of_arm.most_common(1)[0][0] for arm, of_arm in lengths.items()}
    counted = [row for row in rows if row["state"] == "diverged" or steps_of(row) == usual[row["arm"]]]
    sign, found = metric_of(metric).sign, dict[str, list[float]]()
    for row in counted:
        value = math.inf if row["state"] == "diverged" or not row[metric] else sign * float(row[metric])
        found.setdefault(row["arm"], []).append(value)
    return {arm: np.array(values) for arm, values in found.items()}


def steps_of(row: Mapping[str, str]) -> int:
    """The generator steps that a run in scores.csv was given; a file without such a column holds runs of one length."""
    return int(row.get("budget") or row.get("steps") or 0)


def improvement(data_sets: DataSets, arm: str, versus: str, *, alpha: float = ALPHA) -> Improvement:
    """P(a seed of ``arm`` is better than one of ``versus``), ties a half, mean over the data sets (Agarwal et al.,
    section 4.3), with its percentile interval from stratified bootstrap: seeds are resampled on each data set.

    The interval leaves out a share ``alpha`` of the resamples. Of arms that never overlap it has no width.
    """
    random = np.random.default_rng(0)
    means, resampled = [], np.zeros(RESAMPLES)
    for scores in data_sets.values():
        mine, other = scores[arm], scores[versus]
        better = np.where(mine[:, None] == other, 0.5, mine[:, None] < other)
        rows, columns = (random.integers(0, n, (RESAMPLES, n)) for n in better.shape)
        means.append(better.mean())
        resampled += better[rows[:, :, None], columns[:, None, :]].mean((1, 2)) / len(data_sets)
    low, high = np.quantile(resampled, [alpha / 2, 1 - alpha / 2])
    return Improvement(float(np.mean(means)), float(low), float(high))


def profile(data_sets: DataSets, arm: str, factors: np.ndarray) -> np.ndarray:
    """The share of an arm's runs whose score is within a factor of the best arm's median, mean over the data sets.

    A performance profile (Dolan and Moré 2002) of the distribution over runs (Agarwal et al., section 4.2).
    """
    shares = []
    for scores in data_sets.values():
        best = best_median(scores)
        limits = best * factors if best > 0 else best / factors  # scores that are to be high come negated
        shares.append(((scores[arm][:, None] <= limits) & np.isfinite(limits)).mean(0))
    return np.mean(shares, 0)


def best_median(scores: Scores) -> float:
    """The median of the best arm; infinite where most runs of every arm diverged."""
    return min(float(np.median(values)) for values in scores.values())


def largest_factor(scores: Scores) -> float:
    """The factor of the best arm's median within which all runs are that have one; 0 where none has."""
    best, values = best_median(scores), np.concatenate([*scores.values()])
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = values / best if best > 0 else best / values
    return float(np.max(factors, initial=0, where=np.isfinite(factors)))


def table(data_sets: DataSets) -> str:
    """The probability that the arm of a row is better than that of a column, in Markdown."""
    arms = list(next(iter(data_sets.values())))
    enough = fewest_seeds(data_sets) >= MIN_SEEDS
    alpha, cells = ALPHA / math.comb(len(arms), 2), dict[tuple[str, str], str]()
    for arm, other in itertools.combinations(arms, 2):
        found = improvement(data_sets, arm, other, alpha=alpha)
        cells[arm, other] = said(found, bold=enough)
        cells[other, arm] = said(Improvement(1 - found.probability, 1 - found.high, 1 - found.low), bold=enough)
    rows = [[arm, *(cells.get((arm, other), "–") for other in arms)] for arm in arms]
    return markdown(Table(["better than", *arms], rows))


def fewest_seeds(data_sets: DataSets) -> int:
    """The seeds of the arm with the fewest."""
    return min(len(values) for scores in data_sets.values() for values in scores.values())


def said(found: Improvement, *, bold: bool) -> str:
    """In words, and if ``bold``, so where the interval is on one side of a half."""
    text = f"{found.probability:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return f"**{text}**" if bold and (found.low > 0.5 or found.high < 0.5) else text


def figure(data_sets: DataSets) -> Figure:
    """The profiles of all arms."""
    arms = list(next(iter(data_sets.values())))
    factors = np.geomspace(0.8, max(2, *map(largest_factor, data_sets.values())), 200)
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = drawn.add_subplot(xlabel="factor of the best arm's median", ylabel="share of runs within", xscale="log")
        for arm, colour in colours(arms).items():
            axes.plot(factors, profile(data_sets, arm, factors), color=colour, label=as_text(arm))
        axes.set_title(f"Over {len(data_sets)} data set{'s' * (len(data_sets) != 1)}", fontsize=10, loc="left")
        axes.legend(fontsize=8)
    return drawn


def write_summary(read: Mapping[str, Scores], where: Path) -> list[Path]:
    """Write across.md and across.svg into a folder, from the scores of studies by what they are called.

    Their arms are those that all of them have. Raises ConfigError where these are fewer than two.
    """
    first, *others = read.values()
    arms = [arm for arm in first if all(arm in scores for scores in others)]
    if len(arms) < 2:
        raise ConfigError(" ".join(read), ": have fewer than two arms in common")
    data_sets = {name: {arm: scores[arm] for arm in arms} for name, scores in read.items()}
    seeds = fewest_seeds(data_sets)
    bold = "bold where these leave out a half" if seeds >= MIN_SEEDS else f"too few to decide, which takes {MIN_SEEDS}"
    note = (
        f"Probability that a run of the row is better than one of the column, over {', '.join(read)}, {seeds} seeds or "
        f"more each, with intervals by stratified bootstrap at {1 - ALPHA / math.comb(len(arms), 2):.4g}, so that all "
        f"pairs together are at {1 - ALPHA:.0%}; {bold}.\n"
    )
    where.mkdir(parents=True, exist_ok=True)
    written = [where / "across.md", where / "across.svg"]
    write_text(written[0], f"{table(data_sets)}\n{note}")
    write_text(written[1], svg(figure(data_sets)))
    return written
