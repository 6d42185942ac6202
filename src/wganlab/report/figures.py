"""Curves of a report, drawn with matplotlib."""

import io
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wganlab.metrics import METRICS, metric_of
from wganlab.report.compare import drawn_columns, in_means, last_scores, swept
from wganlab.runs import Run
from wganlab.statistics import interval

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and a reader can search it
    "svg.hashsalt": "wganlab",  # the same runs give the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}

#: More arms than this are told apart by the colours of the table, not by legends.
MANY_ARMS = 6


def colours(arms: Sequence[str]) -> dict[str, str]:
    """One colour per arm, the same in every figure."""
    names = list(dict.fromkeys(arms))
    cycle = mpl.colormaps["tab10" if len(names) <= 10 else "turbo"].resampled(max(10, len(names)))
    return {arm: mpl.colors.to_hex(cycle(i)) for i, arm in enumerate(names)}


def as_text(name: str) -> str:
    """A name as matplotlib shows it: a dollar begins no formula."""
    return name.replace("$", r"\$")


def svg(figure: Figure) -> str:
    """The figure as an <svg> element."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):  # some settings are read when a figure is written
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def curves(runs: Sequence[Run], arms: Sequence[str]) -> dict[str, Figure]:
    """A figure for every column of metrics.csv that is not zero throughout, by name.

    Columns such as critic/layer_gradient/LAYER share one figure, critic/layer_gradient.
    """
    families: dict[str, list[str]] = {}
    for column in drawn_columns(runs):
        families.setdefault("/".join(column.split("/")[:2]), []).append(column)
    figures = {
        name: learning_curve(name, runs, arms) if columns == [name] else last_values(name, columns, runs, arms)
        for name, columns in families.items()
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def headlines(runs: Sequence[Run], arms: Sequence[str]) -> dict[str, Figure]:
    """:func:`every_seed` of the main results, by name."""
    drawn = {name: every_seed(name, runs, arms) for name, metric in METRICS.items() if metric.headline}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def title(metric: str) -> str:
    """The title of a metric's figure; a dollar sign in a user's column begins no formula."""
    return as_text(metric_of(metric).title)


def learning_curve(metric: str, runs: Sequence[Run], arms: Sequence[str]) -> Figure | None:
    """One metric against generator steps, all runs on shared axes, epochs below; None where all values are zero.

    Arms of three seeds or more are drawn as their mean and its 95% interval, a band; arms of two seeds as thin lines
    with their mean. The y axis is logarithmic where all values are positive and arms differ tenfold.
    """
    series = {}
    for index, run in enumerate(runs):
        points = [(row["step"], row[metric]) for row in run.rows if metric in row]
        if points:
            series[index] = np.array(points).T
    if not any(np.any(values) for _, values in series.values()):
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for arm, colour in colours(arms).items():
            members = [series[i] for i in series if arms[i] == arm]
            seeds = {str(runs[i].config.get("seed")) for i in series if arms[i] == arm}
            _draw_arm(axes, members, arm, colour, "seeds" if len(seeds) == len(members) else "runs")
        _scale(axes, list(series.values()))
        perfect = {row["eval/emd_real"] for run in runs for row in run.rows if "eval/emd_real" in row}
        if metric == "eval/emd_raw" and len(perfect) == 1:
            axes.axhline(*perfect, color="0.4", ls=":", lw=1, label="real against real")
            axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.98 * min(perfect)))
        axes.set_xlabel("generator steps")
        axes.set_title(title(metric), fontsize=10, loc="left")
        if len(set(arms)) <= MANY_ARMS:  # the page's table is a legend, too
            axes.legend(fontsize=8)
        _epoch_axes(axes, [runs[i] for i in series], [arms[i] for i in series])
    return figure


def last_values(family: str, columns: Sequence[str], runs: Sequence[Run], arms: Sequence[str]) -> Figure | None:
    """The last value of each column of a family, such as the layers of a critic, a line per arm: the mean over those
    of its runs that count."""
    members = [column.removeprefix(f"{family}/") for column in columns]
    lines: dict[str, np.ndarray] = {}
    counting = [(run, name) for run, name, counts in zip(runs, arms, in_means(runs, arms), strict=True) if counts]
    for arm in dict.fromkeys(arms):
        finals = [run.outcome["final"] for run, name in counting if name == arm]
        values = [[final[column] for final in finals if column in final] for column in columns]
        if any(map(any, values)):
            lines[arm] = np.array([np.mean(found) if found else np.nan for found in values])
    if not lines:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for arm, colour in colours(arms).items():
            if arm in lines:
                axes.plot(lines[arm], color=colour, marker="o", ms=3, lw=1.4, label=as_text(arm))
        finite = np.concatenate([values[np.isfinite(values)] for values in lines.values()])
        if finite.min() > 0 and finite.max() > 10 * finite.min():
            axes.set_yscale("log")
        axes.set_xticks(range(len(members)), members, rotation=45, ha="right", fontsize=7)
        axes.set_title(title(family), fontsize=10, loc="left")
        if len(lines) <= MANY_ARMS:
            axes.legend(fontsize=8)
    return figure


def _draw_arm(axes: Axes, members: Sequence[np.ndarray], arm: str, colour: str, called: str) -> None:
    """The runs of one arm, each an array (2, points) of steps and values: a line, lines and mean, or mean and band."""
    aligned = len({tuple(steps) for steps, _ in members}) == 1
    banded, alone = aligned and len(members) > 2, len(members) == 1
    dot = "o" if all(len(steps) == 1 for steps, _ in members) else None  # of which a line is not seen
    for i, (steps, values) in enumerate(members if not banded else ()):
        named = as_text(arm) if alone or (i == 0 and not aligned) else None
        width, alpha = (1.4, 1.0) if alone else (0.6, 0.5)
        axes.plot(steps, values, color=colour, lw=width, alpha=alpha, marker=dot, ms=4, label=named)
    if alone or not aligned:
        return
    steps = members[0][0]
    mean, low, high = np.transpose([interval(values) for values in zip(*(v for _, v in members), strict=True)])
    label = f"{as_text(arm)} (mean of {len(members)} {called})"
    axes.plot(steps, mean, color=colour, lw=1.6, marker=dot, ms=4, label=label)
    if banded:
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)


def every_seed(metric: str, runs: Sequence[Run], arms: Sequence[str]) -> Figure | None:
    """The last value of a metric in every run, a row of dots per arm; None where no arm has two runs.

    A line is the mean over the runs that count; dots of others are hollow.
    """
    values: dict[str, dict[bool, list[float]]] = {arm: {True: [], False: []} for arm in arms}
    for run, arm, counts in zip(runs, arms, in_means(runs, arms), strict=True):
        final = run.outcome["final"]
        values[arm][counts].extend([final[metric]] if metric in final else [])
    if max(len(of[True]) + len(of[False]) for of in values.values()) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.6 + 0.3 * len(values)), layout="constrained")
        axes = figure.add_subplot()
        for row, (arm, colour) in enumerate(colours(arms).items()):
            for counts, found in values[arm].items():
                axes.scatter(found, [row] * len(found), color=colour if counts else "none", ec=colour, s=18, alpha=0.8)
            if values[arm][True]:
                axes.plot([np.mean(values[arm][True])] * 2, [row - 0.35, row + 0.35], color=colour, lw=1.6)
        axes.set_yticks(range(len(values)), [*map(as_text, values)])
        axes.invert_yaxis()
        axes.set_title(f"{metric_of(metric).short_title}: every run, and means", fontsize=10, loc="left")
    return figure


def heat_map(metric: str, runs: Sequence[Run]) -> Figure | None:
    """The last value of a metric over the two numbers that a sweep varies; None of other sweeps.

    A grid is drawn as one, with the mean over the seeds that have completed in each cell; random settings as dots.
    Axes are logarithmic where their numbers are positive and differ tenfold.
    """
    keys = swept(runs)
    if len(keys) != 2 or any(isinstance(value, str) for values in keys.values() for value in values):
        return None
    (across, x), (up, y) = keys.items()
    found: dict[tuple[Any, Any], list[float]] = {}
    places = list(zip(x, y, strict=True))
    for place, score, counts in zip(places, last_scores(runs, metric), in_means(runs, places), strict=True):
        if counts:
            found.setdefault(place, []).append(score)
    columns, rows = sorted({*x}), sorted({*y})
    means = np.array([[np.mean(found.get((column, row), [np.nan])) for column in columns] for row in rows])
    if min(len(columns), len(rows)) < 2 or np.isfinite(means).sum() < 4:
        return None
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel=across, ylabel=up)
        if np.isfinite(means).mean() > 0.5:
            shown: Any = axes.pcolormesh(means, cmap="viridis")
            for (row, column), mean in np.ndenumerate(means):
                if np.isfinite(mean):
                    dark = shown.norm(mean) < 0.6
                    axes.text(
                        column + 0.5, row + 0.5, f"{mean:.3g}", ha="center", va="center", color="w" if dark else "k"
                    )
            axes.set_xticks(np.arange(len(columns)) + 0.5, [f"{value:g}" for value in columns])
            axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{value:g}" for value in rows])
        else:
            place_x, place_y = np.array([*found], dtype=float).T
            scores = [np.mean(values) for values in found.values()]
            shown = axes.scatter(place_x, place_y, c=scores, cmap="viridis", s=60)
            for values, scale in ((columns, axes.set_xscale), (rows, axes.set_yscale)):
                if values[0] > 0 and values[-1] > 10 * values[0]:
                    scale("log")
        figure.colorbar(shown)
        axes.set_title(title(metric), fontsize=10, loc="left")
    return figure


def _scale(axes: Axes, series: Sequence[np.ndarray]) -> None:
    """Logarithmic y where arms differ tenfold, else limits that a few wild first steps do not set."""
    values = np.concatenate([values for _, values in series])
    medians = [np.median(values) for _, values in series]
    if values.min() > 0 and max(medians) > 10 * min(medians):
        axes.set_yscale("log")
        return
    low, high = np.quantile(values, [0.005, 0.995])
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _epoch_axes(axes: Axes, runs: Sequence[Run], arms: Sequence[str]) -> None:
    """Epochs below the steps; arms with another n_critic or batch size see more or less of the data per step."""
    rates: dict[float, list[str]] = {}
    for run, arm in zip(runs, arms, strict=True):
        last = run.rows[-1]
        if last["step"] and last.get("epoch"):
            rates.setdefault(float(f"{last['epoch'] / last['step']:.6g}"), []).append(arm)
    for i, (rate, names) in enumerate(list(rates.items())[:3]):
        below = axes.secondary_xaxis(
            -0.22 - 0.2 * i, functions=(partial(operator.mul, rate), partial(operator.mul, 1 / rate))
        )
        labels = [*map(as_text, dict.fromkeys(names))]
        of = "" if len(rates) == 1 else f": {'; '.join(labels)}" if len(labels) < 4 else f" of {len(labels)} arms"
        below.set_xlabel(f"epochs{of}", fontsize=7, labelpad=2)
        below.tick_params(labelsize=7, pad=1)
