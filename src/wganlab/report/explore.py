"""Curves that can be explored: the numbers of a page's runs, and the library, Plotly, that draws them in a browser."""

import base64
import gzip
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from wganlab.metrics import metric_of
from wganlab.report.compare import drawn_columns, last_scores, main_column, swept
from wganlab.runs import Run
from wganlab.statistics import interval

#: Points of all curves together, at most: what keeps a page of many runs below six megabytes.
POINTS = 100_000
#: Keys and runs from which on a sweep has a plot of parallel coordinates.
MANY_KEYS, MANY_RUNS = 3, 8
#: A curve's generator steps, seconds and values.
Curve = tuple[list[float], list[float], list[float]]


@cache
def library() -> str:
    """Plotly's script, gzipped, in base64: 2 MB, which a browser unpacks by itself."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def content(runs: Sequence[Run], arms: Sequence[str], colours: dict[str, str]) -> dict[str, Any] | None:
    """What the page's script draws; None where there are no curves.

    Columns that are zero throughout have none, and those of a critic's layers are figures of their own.
    """
    measured = {column for run in runs for row in run.rows for column, value in row.items() if value}
    columns = [column for column in drawn_columns(runs) if column in measured and column.count("/") < 2]
    if not columns:
        return None
    main = main_column(columns)
    curves = [{column: curve(run, column) for column in columns} for run in runs]
    points = sum(len(steps) for of_run in curves for steps, *_ in of_run.values())
    every = math.ceil(points / POINTS)
    drawn = [
        {
            "arm": arm,
            "seed": run.config.get("seed"),
            "curves": {column: thinned(found, every) for column, found in of_run.items() if found[0]},
        }
        for run, arm, of_run in zip(runs, arms, curves, strict=True)
    ]
    return {
        "columns": {column: metric_of(column).title for column in columns},
        "main": main,
        "colours": colours,
        "runs": drawn,
        "bands": {column: bands(drawn, column, list(colours)) for column in columns},
        "sweep": parallel_coordinates(runs, main),
    }


def curve(run: Run, column: str) -> Curve:
    """The finite values of a column, with the generator steps and the seconds at which they were measured."""
    rows = [row for row in run.rows if math.isfinite(row.get(column, math.nan))]
    return (
        [row["step"] for row in rows],
        [round(row.get("seconds", 0.0), 1) for row in rows],
        [float(f"{row[column]:.5g}") for row in rows],
    )


def thinned(found: Curve, every: int) -> list[list[float]]:
    """Every so many points of a curve, and its last."""
    last = len(found[0]) - 1
    kept = [i for i in range(last + 1) if i % every == 0 or i == last]
    return [[values[i] for i in kept] for values in found]


def bands(drawn: Sequence[dict[str, Any]], column: str, arms: Sequence[str]) -> dict[str, list[list[float]]]:
    """Steps, mean, and the ends of its 95% interval, of each arm with three runs or more that were measured alike."""
    found = {}
    for arm in arms:
        curves = [run["curves"][column] for run in drawn if run["arm"] == arm and column in run["curves"]]
        if len(curves) > 2 and len({tuple(steps) for steps, _, _ in curves}) == 1:
            summary = [interval(values) for values in zip(*(values for _, _, values in curves), strict=True)]
            found[arm] = [curves[0][0], *([float(f"{x:.5g}") for x in part] for part in zip(*summary, strict=True))]
    return found


def parallel_coordinates(runs: Sequence[Run], metric: str) -> dict[str, Any] | None:
    """The keys of a sweep over many of them, and the last score of each run, lower first; None of other runs."""
    keys, scores = swept(runs), last_scores(runs, metric)
    kept = [i for i, score in enumerate(scores) if math.isfinite(score)]
    if len(keys) < MANY_KEYS or len(kept) < MANY_RUNS:
        return None
    return {
        "score": metric_of(metric).short_title or metric,
        "values": [scores[i] for i in kept],
        "keys": {key: [values[i] for i in kept] for key, values in keys.items()},
    }
