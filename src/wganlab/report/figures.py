"""Figures of a report, drawn with matplotlib."""

import io
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wganlab.metrics import METRICS
from wganlab.report.compare import select
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

#: Metrics that say how good samples are, of which every run is shown, too.
JUDGED = ("eval/fid", "eval/emd", "eval/modes")

#: Epochs at which the walk-through of MNIST with a DCGAN shows its samples.
EPOCHS = (1, 2, 4, 10, 50, 100)

#: More arms than this are told apart by the colours of the table, not by legends.
MANY_ARMS = 6


def colours(arms: Sequence[str]) -> dict[str, str]:
    """One colour per arm, the same in every figure."""
    names = list(dict.fromkeys(arms))
    cycle = mpl.colormaps["tab10" if len(names) <= 10 else "turbo"].resampled(max(10, len(names)))
    return {arm: mpl.colors.to_hex(cycle(i)) for i, arm in enumerate(names)}


def svg(figure: Figure) -> str:
    """The figure as an <svg> element."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):  # some settings are read when a figure is written
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def learning_curve(metric: str, runs: Sequence[Run], arms: Sequence[str]) -> Figure | None:
    """One metric against generator steps, all runs on shared axes, epochs below; None where nobody measured it.

    Arms of three seeds or more are drawn as their mean in a band, its 95% interval; of two as thin lines with their
    mean. The y axis is logarithmic where all values are positive and arms differ tenfold.
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
            _curves(axes, members, arm, colour, "seeds" if len(seeds) == len(members) else "runs")
        _scale(axes, list(series.values()))
        perfect = {row["eval/emd_real"] for run in runs for row in run.rows if "eval/emd_real" in row}
        if metric == "eval/emd" and len(perfect) == 1:
            axes.axhline(*perfect, color="0.4", ls=":", lw=1, label="real against real")
            axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.98 * min(perfect)))
        axes.set_xlabel("generator steps")
        axes.set_title(METRICS[metric].title if metric in METRICS else metric, fontsize=10, loc="left")
        if len(set(arms)) <= MANY_ARMS:  # the page's table is a legend, too
            axes.legend(fontsize=8)
        _epoch_axes(axes, [runs[i] for i in series], [arms[i] for i in series])
    return figure


def _curves(axes: Axes, members: Sequence[np.ndarray], arm: str, colour: str, called: str) -> None:
    """The runs of one arm, each an array (2, points) of steps and values: a line, lines and mean, or mean and band."""
    aligned = len({len(steps) for steps, _ in members}) == 1
    banded, alone = aligned and len(members) > 2, len(members) == 1
    for steps, values in members if not banded else ():
        axes.plot(steps, values, color=colour, lw=1.4 if alone else 0.6, alpha=1 if alone else 0.5,
                  label=arm if alone else None)  # fmt: skip
    if alone or not aligned:
        return
    steps = members[0][0]
    mean, low, high = np.transpose([interval(values) for values in zip(*(v for _, v in members), strict=True)])
    axes.plot(steps, mean, color=colour, lw=1.6, label=f"{arm} (mean of {len(members)} {called})")
    if banded:
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)


def every_seed(metric: str, runs: Sequence[Run], arms: Sequence[str]) -> Figure | None:
    """The last value of a metric in every run, a column of dots per arm with its mean; None where no arm has two."""
    values: dict[str, list[float]] = {}
    for run, arm in zip(runs, arms, strict=True):
        final = [row[metric] for row in run.rows if metric in row][-1:]
        values.setdefault(arm, []).extend(final)
    if max(map(len, values.values())) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.6 + 0.3 * len(values)), layout="constrained")
        axes = figure.add_subplot()
        for row, (arm, colour) in enumerate(colours(arms).items()):
            axes.scatter(values[arm], [row] * len(values[arm]), color=colour, s=18, alpha=0.8)
            if values[arm]:
                axes.plot([np.mean(values[arm])] * 2, [row - 0.35, row + 0.35], color=colour, lw=1.6)
        axes.set_yticks(range(len(values)), list(values))
        axes.invert_yaxis()
        axes.set_title(f"{METRICS[metric].title}: every run, and means", fontsize=10, loc="left")
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
            rates.setdefault(round(last["epoch"] / last["step"], 6), []).append(arm)
    for i, (rate, names) in enumerate(list(rates.items())[:3]):
        below = axes.secondary_xaxis(
            -0.22 - 0.2 * i, functions=(partial(operator.mul, rate), partial(operator.mul, 1 / rate))
        )
        labels = list(dict.fromkeys(names))
        of = "" if len(rates) == 1 else f": {'; '.join(labels)}" if len(labels) < 4 else f" of {len(labels)} arms"
        below.set_xlabel(f"epochs{of}", fontsize=7, labelpad=2)
        below.tick_params(labelsize=7, pad=1)


def weight_histogram(weights: np.ndarray, bound: float | None, colour: str) -> Figure:
    """Histogram of critic weights; dashed lines at the clipping bound where there is one."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(weights, bins=101, color=colour)
        for position in (-bound, bound) if bound else ():
            axes.axvline(position, color="0.3", ls="--", lw=0.8)
        axes.set_xlabel("weight")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    return figure


def side_by_side(grids: Mapping[str, Path]) -> Figure:
    """Sample grids (PNG files) in one row, each under its name."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3 * len(grids), 3.3), layout="constrained")
        for axes, (name, path) in zip(np.ravel(figure.subplots(1, len(grids))), grids.items(), strict=True):
            axes.imshow(mpl.image.imread(path), cmap="gray", interpolation="nearest")
            axes.set_title(name, fontsize=10)
            axes.set_axis_off()
    return figure


def samples_by_epoch(run: Run) -> Figure | None:
    """The first row of a run's grid after each of EPOCHS epochs, as far as it got; None where it saved none of them.

    A grid counts for an epoch when it was saved within a tenth of it.
    """
    last = run.rows[-1] if run.rows else {}
    per_step = last.get("epoch", 0) / last["step"] if last.get("step") else 0
    rows = {}
    for epoch in EPOCHS:
        step = min(run.samples, key=lambda step: abs(step * per_step - epoch), default=0)
        if abs(step * per_step - epoch) <= epoch / 10:
            rows[epoch] = mpl.image.imread(run.samples[step])
    n = select(run.config, "callbacks.samples.n")
    if not rows or not isinstance(n, int) or "toys" in str(select(run.config, "dataset._target_")):
        return None
    columns = round(n**0.5)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.8 * columns + 0.8, 0.8 * len(rows)), layout="constrained")
        for axes, (epoch, grid) in zip(np.ravel(figure.subplots(len(rows), 1)), rows.items(), strict=True):
            axes.imshow(grid[: len(grid) // -(-n // columns)], cmap="gray", interpolation="nearest")
            axes.set_ylabel(f"epoch {epoch}", rotation=0, ha="right", va="center")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def critic_weights(checkpoint: Mapping) -> np.ndarray:
    """Entries of the critic's matrices and kernels in a loaded checkpoint; biases and norm scales left out.

    Raises ValueError when none of them is finite.
    """
    state = checkpoint["state_dict"]
    kernels = [value for key, value in state.items() if key.startswith("critic.") and value.dim() > 1]
    weights = np.concatenate([value.float().numpy().ravel() for value in kernels])
    if not np.isfinite(weights).any():
        raise ValueError("no finite weights")
    return weights[np.isfinite(weights)]
