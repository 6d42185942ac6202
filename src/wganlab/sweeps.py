"""A sweep as a whole: all its jobs, whatever becomes of each."""

import multiprocessing
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from wganlab.runs import Run, Status

#: Seconds within which the runs of workers end their step and save.
PATIENCE = 60
#: Jobs that have not ended by themselves are launched again, so often without progress.
ATTEMPTS = 2


def run_sweep(launch: Callable[[list[list[int]]], object], folders: Sequence[Path], size: int) -> int:
    """Launch a sweep until every job has completed or failed by itself; returns the exit code.

    ``launch`` takes the positions of jobs in batches, each without gaps and of at most ``size``. A worker that is
    killed takes its launcher's other jobs with it: the sweep is launched again, and where that makes an end of none,
    what is left job by job. Where one has not completed, a table says what became of each.
    """
    os.environ["WGANLAB_SWEEP"] = secrets.token_hex(8)  # marks its failures, see record.refuse_to_repeat
    every = list(range(len(folders)))
    together = [every[i : i + size] for i in every[::size]]
    left, still_open, without_progress = every, len(folders) + 1, 0
    while True:
        failure: Exception | None = None
        try:
            launch([[i] for i in left] if without_progress else together)
        except Exception as error:  # of a job, which has left its record, or of the launcher
            failure = error
        left = [i for i in every if state(folders[i])[0] in (Status.ABSENT, Status.INTERRUPTED)]
        before, still_open = still_open, len(left)
        without_progress = 0 if still_open < before else without_progress + 1
        if failure is None or not left or without_progress == ATTEMPTS:
            return report(folders, failure)


@contextmanager
def stopping_workers(base: Path) -> Iterator[None]:
    """Within it, SIGTERM to this process stops the runs of the workers that it has started, too, once they have saved.

    Who signals one process, as ``timeout`` and ``kill`` do, would leave them at work with nobody to end them.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        workers, until = multiprocessing.active_children(), time.monotonic() + PATIENCE
        for worker in workers:
            worker.terminate()
        while (
            workers
            and time.monotonic() < until
            and any(Run(path.parent).state == Status.RUNNING for path in base.rglob("status.json"))
        ):
            time.sleep(0.1)
        raise KeyboardInterrupt(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only there does Python let handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def state(folder: Path) -> tuple[Status, str]:
    """The state of a job, and the first line of what went wrong."""
    if not (folder / "status.json").exists():
        return Status.ABSENT, ""
    status = Run(folder).status
    return status["state"], str(status.get("error") or "").partition("\n")[0]


def report(folders: Sequence[Path], failure: Exception | None) -> int:
    """Print the state of every job when not all have completed; the exit code says whether they have."""
    states = {folder: state(folder) for folder in folders}
    completed = sum(name == Status.COMPLETED for name, _ in states.values())
    if failure is not None and completed == len(folders):
        raise failure
    if completed == len(folders):
        return 0
    width = max(len(folder.name) for folder in folders)
    for folder, (name, error) in states.items():
        print(f"{name:<12}{folder.name:<{width}}  {error}".rstrip())
    if failure is not None and not any(error for _, error in states.values()):  # no job has said why
        print(f"wganlab: {type(failure).__name__}: {' '.join(str(failure).split())}", file=sys.stderr)
    print(f"{completed} of {len(folders)} jobs completed; the same command runs the others again", flush=True)
    return 1
