"""MNIST through torchvision."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

IMAGES = {True: "train-images-idx3-ubyte", False: "t10k-images-idx3-ubyte"}
FILES = (*IMAGES.values(), "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")


class MNIST:
    """28x28 handwritten digits: 60,000 to train, 10,000 to test (LeCun et al. 1998).

    Raises FileNotFoundError when a file is missing and ``download`` is off, ValueError when one is damaged.
    """

    shape = (1, 28, 28)

    def __init__(self, *, root: str, train: bool = True, download: bool = False) -> None:
        self.root, self.train = Path(root).expanduser(), train
        raw = self.root / "MNIST" / "raw"
        missing = [name for name in FILES if not (raw / name).is_file()]
        if missing and download:
            self._dataset(download=True)
        elif missing:
            raise FileNotFoundError(
                f"root={root}: {raw} lacks {', '.join(missing)}; unpack the four MNIST files "
                "there, or let torchvision fetch them with dataset.download=true"
            )
        with open(raw / IMAGES[train], "rb") as file:
            header = file.read(8)  # big-endian: magic number 2051, number of images
        if header[:4] != (2051).to_bytes(4, "big"):
            raise ValueError(f"root={root}: {raw / IMAGES[train]} is no file of MNIST images (wrong magic number)")
        self.length = int.from_bytes(header[4:], "big")
        size, wanted = (raw / IMAGES[train]).stat().st_size, 16 + 784 * self.length
        if size != wanted:
            raise ValueError(f"root={root}: {raw / IMAGES[train]} has {size:,} bytes, not {wanted:,}: it is not whole")

    def __len__(self) -> int:
        return self.length

    def load(self) -> Tensor:
        """uint8 of shape (60000 or 10000, 1, 28, 28)."""
        dataset = self._dataset()
        self._labels: Tensor = dataset.targets
        return dataset.data.unsqueeze(1)

    def labels(self) -> Tensor:
        """Digits of what :meth:`load` returned."""
        return self._labels

    def _dataset(self, download: bool = False):  # type: ignore[no-untyped-def]  # torchvision has no types
        from torchvision import datasets

        with with_time_out():
            try:
                return datasets.MNIST(str(self.root), train=self.train, download=download)
            except Exception as error:
                what = "cannot be downloaded" if download else "cannot be read"
                raise ValueError(f"root={self.root}: MNIST {what}: {error}") from error


@contextmanager
def with_time_out(seconds: float = 30.0) -> Iterator[None]:
    """Give up on a silent server: behind a firewall a download would hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
