"""One process per run folder: a lock that dies with its holder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


#: A lock is asked for so often: who only looks whether there is one holds it for a moment, too.
TRIES = 5


class BusyError(Exception):
    """Another process works on a folder."""

    def __str__(self) -> str:
        return f"{self.args[0]} is being worked on by another process"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for as long as the block, or the process, lives. Raises BusyError when somebody else does.

    The lock is the kernel's (flock) on the folder itself: it leaves no file, and a killed process cannot keep it. On
    Windows it is that of a file in the folder.
    """
    if fcntl is None:
        from filelock import FileLock, Timeout

        try:
            with FileLock(folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise BusyError(folder) from None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _flock(descriptor, fcntl.LOCK_EX, tries=TRIES):
            raise BusyError(folder)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process works on the folder. Those that ask at the same time do not see one another."""
    if fcntl is None:
        try:
            with locked(folder):
                return False
        except BusyError:
            return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int, *, tries: int = 1) -> bool:
    """Whether a lock was to be had; a hundredth of a second passes between two tries."""
    for left in reversed(range(tries)):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01 if left else 0)
    return False
