"""``wganlab report PATH --watch``: the page of runs that are still being made, written again as they go on."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wganlab.runs import Run, Status, find_runs, read_metrics
from wganlab.schema import ConfigError

#: Seconds between looks at the runs, and at least between two pages, each of which costs some seconds of a core.
LOOK, PAGE = 1.0, 20.0


def watch(paths: Sequence[str], write: Callable[[list[Run], bool], None]) -> None:
    """Call ``write`` with the runs at the paths when they have new rows, and whether more will come.

    It returns when every run has ended, and every job of their sweeps. Paths may be empty at first, or not be there.
    """
    seen: object = None
    written = -PAGE
    while True:
        runs = those_with_rows(paths)
        going_on = not runs or more_to_come(paths, runs)
        now = [(run.folder, (run.folder / "metrics.csv").stat().st_mtime_ns, run.state) for run in runs]
        if runs and not going_on:
            write(runs, False)
            return
        if runs and now != seen and time.monotonic() > written + PAGE:
            write(runs, True)
            seen, written = now, time.monotonic()
        time.sleep(LOOK)


def those_with_rows(paths: Sequence[str]) -> list[Run]:
    """The runs at the paths that have something to show."""
    found: list[Run] = []
    for path in paths:
        try:
            found += [run for run in find_runs([path]) if has_rows(run.folder / "metrics.csv")]
        except ConfigError:  # not yet there
            continue
    return found


def has_rows(path: Path) -> bool:
    """Whether a metrics.csv has a row, of which only the first is read: this is asked every second."""
    return path.is_file() and any(row is not None for row in read_metrics(path))


def more_to_come(paths: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether a run is still being made, or a job of a sweep has not begun."""
    jobs = [
        record.parent / name for path in paths for record in Path(path).rglob("sweep.json") for name in names(record)
    ]
    return any(run.state == Status.RUNNING for run in runs) or any(not (job / "status.json").is_file() for job in jobs)


def names(record: Path) -> list[str]:
    """The jobs of a sweep, from its sweep.json."""
    try:
        return [*json.loads(record.read_text())]
    except (OSError, ValueError):
        return []
