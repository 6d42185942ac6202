"""Figures of what the networks are: samples of the generator, weights of the critic."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wganlab.report.figures import STYLE, as_text
from wganlab.runs import Run


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
            axes.set_title(as_text(name), fontsize=10)
            axes.set_axis_off()
    return figure


def samples_by_epoch(run: Run, epochs: Sequence[int]) -> Figure | None:
    """The first row of a run's grid of images after each of these epochs that it has samples of; None without any.

    A grid counts for an epoch when it was saved within a tenth of it. None of runs whose samples are no images.
    """
    last = run.rows[-1] if run.rows else {}
    per_step = last.get("epoch", 0) / last["step"] if last.get("step") else 0
    rows = {}
    for epoch in epochs:
        step = min(run.samples, key=lambda step: abs(step * per_step - epoch), default=0)
        if step in run.samples and abs(step * per_step - epoch) <= epoch / 10:
            rows[epoch] = mpl.image.imread(run.samples[step])
    if not rows or run.shape is None or len(run.shape) != 3:
        return None
    height, columns = run.shape[1] + 1, max(grid.shape[1] // (run.shape[2] + 1) for grid in rows.values())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.8 * columns + 0.8, 0.8 * len(rows)), layout="constrained")
        for axes, (epoch, grid) in zip(np.ravel(figure.subplots(len(rows), 1)), rows.items(), strict=True):
            axes.imshow(grid[: height + 1], cmap="gray", interpolation="nearest")
            axes.set_ylabel(f"epoch {epoch}", rotation=0, ha="right", va="center")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def grids_by_step(run: Run, steps: Sequence[int]) -> Figure | None:
    """A run's grids of samples after each of these generator steps that it has, ten in a row; None without any."""
    grids = {f"step {step:,}": run.samples[step] for step in steps if step in run.samples}
    if not grids:
        return None
    rows = -(-len(grids) // 10)
    columns = -(-len(grids) // rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * columns, 1.7 * rows), layout="constrained")
        for axes in np.ravel(figure.subplots(rows, columns)):
            axes.set_axis_off()
        for axes, (name, path) in zip(figure.axes, grids.items(), strict=False):
            axes.imshow(mpl.image.imread(path), cmap="gray", interpolation="nearest")
            axes.set_title(as_text(name), fontsize=8)
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
