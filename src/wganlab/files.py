"""Files of a run folder: written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def from_here(path: str | Path) -> str:
    """A path as seen from the working directory; itself where it is on another drive of Windows."""
    path = Path(path).expanduser()
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new one, never a part, whoever else writes it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A path at which to make a folder, which takes the place of another one when all has gone well.

    What fails leaves nothing behind, not even parents of the folder.
    """
    from tempfile import TemporaryDirectory  # no part of the start of every command

    folder = folder.resolve()  # a link stays, and what it leads to is replaced
    there = next(parent for parent in folder.parents if parent.exists())
    with TemporaryDirectory(prefix=".wganlab-", dir=there) as part:
        new = Path(part, "new")
        yield new
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(Path(part, "old"))
        new.rename(folder)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity become null, since JSON has no word for them."""
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not abs(content) < float("inf") else content
