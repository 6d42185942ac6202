"""Losses of each epoch, in a table and a figure as published walk-throughs print them, beside what they printed."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from wganlab.report.figures import STYLE, as_text, colours
from wganlab.report.tables import Table, markdown
from wganlab.runs import Row, Run
from wganlab.schema import ConfigError

#: Losses of an epoch: the column of metrics.csv, and the factor that makes it the loss.
LOSSES = {
    "generator": ("generator/loss", 1),
    "critic": ("critic/loss", 1),
    "real": ("critic/real_score", -1),
    "fake": ("critic/fake_score", 1),
}
#: Who is named in the column "run" for what a source printed.
PUBLISHED = "published"

#: Epoch -> its minutes of training from the start, and its losses.
Epochs = Mapping[int, Mapping[str, float]]


def mean_over_steps(rows: Sequence[Row], column: str, *, since: float = 0) -> float:
    """Mean of a column over steps: a row of metrics.csv stands for those since the one before, or since a step."""
    steps = np.diff([since, *(row["step"] for row in rows)])
    return float(np.average([row[column] for row in rows], weights=steps))


def mean_over_epoch(rows: Sequence[Row], column: str, epoch: int) -> float | None:
    """Mean of a column over the steps of an epoch, counted from 1; None where no rows end at both its borders."""
    borders = {row["epoch"]: row["step"] for row in rows if "epoch" in row} | {0: 0}
    if epoch not in borders or epoch - 1 not in borders:
        return None
    begin, end = borders[epoch - 1], borders[epoch]
    within = [row for row in rows if begin < row["step"] <= end and column in row]
    return mean_over_steps(within, column, since=begin) if within else None


def epochs_of(run: Run) -> Epochs:
    """The epochs of a run that are whole."""
    found: dict[int, dict[str, float]] = {}
    since: list[Row] = []  # the end of the epoch before
    for row in run.rows:
        since.append(row)
        epoch = int(row.get("epoch", 0))
        if epoch and epoch == row["epoch"]:
            means = {name: mean_over_epoch(since, column, epoch) for name, (column, _) in LOSSES.items()}
            since = [row]
            losses = {name: LOSSES[name][1] * mean for name, mean in means.items() if mean is not None}
            if len(losses) == len(LOSSES):
                found[epoch] = {"minutes": row["seconds"] / 60} | losses
    return found


def read_published(path: Path) -> Epochs:
    """What a source printed: a CSV with the column epoch, and any of minutes, generator, critic, real and fake.

    Raises ConfigError for a file that is no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {
                int(row["epoch"]): {key: float(value) for key, value in row.items() if key != "epoch" and value}
                for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f": must be a CSV of numbers with a column epoch ({error})") from error


def table(arms: Mapping[str, Epochs], shown: Sequence[int]) -> str:
    """The epochs of ``shown`` that each arm has, in Markdown, an epoch's rows beside each other."""
    cells = [
        [str(epoch), arm, *(format(of[epoch][key], ".2f") if key in of[epoch] else "–" for key in ("minutes", *LOSSES))]
        for epoch in sorted(set(shown))
        for arm, of in arms.items()
        if epoch in of
    ]
    head = ["epoch", "run", "minutes", *(f"{name} loss" for name in LOSSES)]
    return markdown(Table(head, cells))


def figure(arms: Mapping[str, Epochs]) -> Figure:
    """The four losses by epoch, a line per arm; what a source printed as black dots."""
    ours = [arm for arm in arms if arm != PUBLISHED]
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(7.6, 5.2), layout="constrained")
        for axes, name in zip(drawn.subplots(2, 2, sharex=True).flat, LOSSES, strict=True):
            for arm, of in arms.items():
                points = [(epoch, losses[name]) for epoch, losses in of.items() if name in losses]
                if points:
                    colour, line = (colours(ours)[arm], "-") if arm in ours else ("black", ":")
                    marker = "o" if len(points) < 20 else ""
                    axes.plot(
                        *zip(*points, strict=True),
                        label=as_text(arm),
                        color=colour,
                        ls=line,
                        lw=1.4,
                        marker=marker,
                        ms=4,
                    )
            axes.set_title(f"{as_text(name)} loss", fontsize=10, loc="left")
            axes.set_yscale("symlog", linthresh=10)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:.0f}")
        for axes in drawn.axes[2:]:
            axes.set_xlabel("epoch")
        drawn.axes[0].legend(fontsize=8)
    return drawn
