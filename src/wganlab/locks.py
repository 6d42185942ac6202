"""One process per run folder: a lock that dies with its holder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(folder) from None
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process works on the folder."""
    try:
        with locked(folder):
            return False
    except BusyError:
        return True
