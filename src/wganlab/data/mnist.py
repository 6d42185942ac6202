"""MNIST and Fashion-MNIST, which has its format, through torchvision."""

from pathlib import Path

from torch import Tensor

from wganlab.data.from_torchvision import read
from wganlab.schema import InvalidValueError

IMAGES = {True: "train-images-idx3-ubyte", False: "t10k-images-idx3-ubyte"}
FILES = (*IMAGES.values(), "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")


class MNIST:
    """28x28 handwritten digits: 60,000 to train, 10,000 to test (LeCun et al. 1998).

    Raises InvalidValueError when a file is missing and ``download`` is off, and when one is damaged.
    """

    licence = "CC BY-SA 3.0: MNIST, by Yann LeCun and Corinna Cortes"
    shape = (1, 28, 28)
    #: The class of torchvision, and its folder below ``root``.
    name = "MNIST"

    def __init__(self, *, root: str, train: bool = True, download: bool = False) -> None:
        self.root, self.train = Path(root).expanduser(), train
        raw = self.root / self.name / "raw"
        missing = [name for name in FILES if not (raw / name).is_file()]
        if missing and download:
            read(self.name, self.root, train=train, download=True)
        elif missing:
            advice = f"unpack the four {self.name} files there, or let torchvision fetch them by dataset.download=true"
            raise InvalidValueError("root", root, f"{raw} lacks {', '.join(missing)}; {advice}")
        with open(raw / IMAGES[train], "rb") as file:
            header = file.read(8)  # big-endian: magic number 2051, number of images
        if header[:4] != (2051).to_bytes(4, "big"):
            message = f"{raw / IMAGES[train]} is no file of {self.name} images (wrong magic number)"
            raise InvalidValueError("root", root, message)
        self.length = int.from_bytes(header[4:], "big")
        size, wanted = (raw / IMAGES[train]).stat().st_size, 16 + 784 * self.length
        if size != wanted:
            message = f"{raw / IMAGES[train]} has {size:,} bytes, not {wanted:,}: it is not whole"
            raise InvalidValueError("root", root, message)

    def __len__(self) -> int:
        return self.length

    def load(self) -> Tensor:
        """uint8 of shape (60000 or 10000, 1, 28, 28)."""
        dataset = read(self.name, self.root, train=self.train)
        self._labels: Tensor = dataset.targets
        return dataset.data.unsqueeze(1)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The images and labels of the split that is not trained on, the test images as a rule."""
        dataset = read(self.name, self.root, train=not self.train)
        return dataset.data.unsqueeze(1), dataset.targets

    def labels(self) -> Tensor:
        """Digits, or numbers of the garments, of what :meth:`load` returned."""
        return self._labels


class FashionMNIST(MNIST):
    """28x28 grey garments of ten kinds: 60,000 to train, 10,000 to test (Xiao et al. 2017, arXiv 1708.07747).

    Raises what :class:`MNIST` raises.
    """

    licence = "MIT: Fashion-MNIST, by Zalando SE"
    name = "FashionMNIST"
