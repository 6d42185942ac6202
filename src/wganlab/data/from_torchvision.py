"""Data sets that torchvision reads."""

import socket
from pathlib import Path
from typing import Any

from wganlab.schema import InvalidValueError


def read(name: str, root: Path, *, train: bool, download: bool = False, damaged: str = "cannot be read") -> Any:
    """torchvision's data set of that name below ``root``. Raises InvalidValueError, naming root, when that fails.

    A download gives up on a silent server after 30 s: behind a firewall it would hang for ever.
    """
    from torchvision import datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        return getattr(datasets, name)(str(root), train=train, download=download)
    except Exception as error:
        what = "cannot be downloaded" if download else damaged
        raise InvalidValueError("root", root, f"{name} {what}: {error}") from error
    finally:
        socket.setdefaulttimeout(before)
