"""``wganlab report PATH --watch``: the page of runs that are still being made, written again as they go on."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wganlab.locks import is_locked
from wganlab.runs import Run, Status, find_runs, read_metrics
from wganlab.schema import ConfigError

#: Seconds between looks at the runs, and at least between two pages, each of which costs some seconds of a core.
LOOK, PAGE = 1.0, 20.0


def watch(paths: Sequence[str], write: Callable[[list[Run], bool], None]) -> None:
    """Call ``write`` with the runs at the paths when they have new rows, and whether more will come.

    It returns when every run has ended, and every sweep. Paths may be empty at first, or not be there. Raises
    ConfigError where all runs have ended without a row.
    """
    seen: object = None
    written, waiting = -PAGE, False
    while True:
        begun = runs_at(paths)
        runs = [run for run in begun if has_rows(run.folder / "metrics.csv")]
        at_work = more_to_come(paths, begun) or any(is_locked(run.folder) for run in begun)
        if begun and not runs and not at_work:
            raise ConfigError(", ".join(paths), ": all runs have ended before their first row")
        if not runs and not waiting:
            print(f"waiting for the first row of a run in {', '.join(paths)}", flush=True)
            waiting = True
        going_on = not runs or more_to_come(paths, begun)
        now = [(run.folder, (run.folder / "metrics.csv").stat().st_mtime_ns, run.state) for run in runs]
        if runs and not going_on:
            write(runs, False)
            return
        if runs and now != seen and time.monotonic() > written + PAGE:
            write(runs, True)
            seen, written = now, time.monotonic()
        time.sleep(LOOK)


def runs_at(paths: Sequence[str]) -> list[Run]:
    """The runs at the paths, whether they have something to show or not."""
    found: list[Run] = []
    for path in paths:
        with contextlib.suppress(ConfigError):  # not yet there
            found += find_runs([path])
    return found


def has_rows(path: Path) -> bool:
    """Whether a metrics.csv has a row, of which only the first is read: this is asked every second."""
    return path.is_file() and any(row is not None for row in read_metrics(path))


def more_to_come(paths: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether a sweep at the paths is under way, or one of the runs that have begun is still being made."""
    sweeps = {record.parent for path in paths for record in Path(path).rglob("sweep.json")}
    return any(map(is_locked, sweeps)) or any(run.state == Status.RUNNING for run in runs)
