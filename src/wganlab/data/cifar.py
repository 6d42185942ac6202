"""CIFAR-10, whole or some of its classes, from its original files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wganlab.data.from_torchvision import read
from wganlab.schema import InvalidValueError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 5000, "test": 1000}
FOLDER = "cifar-10-batches-py"


class CIFAR10:
    """32x32 colour images, 5,000 to train and 1,000 to test in each class (Krizhevsky 2009).

    ``classes`` are names or numbers, all ten by default; ``split`` is "train", "test" or "both". Reads
    ``root``/cifar-10-batches-py, whose md5 sums are checked by torchvision.
    Raises InvalidValueError when it is missing and ``download`` is off, for an unknown class and, in ``load``, for a
    damaged file.
    """

    licence = "none is stated; cite Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"
    shape = (3, 32, 32)

    def __init__(
        self,
        *,
        root: str,
        classes: list[int | str] | int | str | None = None,
        split: Literal["train", "test", "both"] = "both",
        download: bool = False,
        flip: bool = False,
    ) -> None:
        self.root, self.flip = Path(root).expanduser(), flip
        chosen = classes if isinstance(classes, list) else [classes] if classes is not None else []
        self.classes = sorted({class_number(name) for name in chosen or range(10)})
        self.splits = ["train", "test"] if split == "both" else [split]
        if download:
            read("CIFAR10", self.root, train=True, download=True)
        elif not (self.root / FOLDER).is_dir():
            advice = "unpack cifar-10-python.tar.gz there, or let torchvision fetch it by dataset.download=true"
            raise InvalidValueError("root", root, f"{self.root / FOLDER} does not exist; {advice}")

    def __len__(self) -> int:
        return len(self.classes) * sum(PER_CLASS[split] for split in self.splits)

    def load(self) -> Tensor:
        """uint8 of shape (len(self), 3, 32, 32)."""
        images, self._labels = self._read(self.splits)
        return images

    def held_out(self) -> tuple[Tensor, Tensor] | None:
        """Images and labels of the split that is not trained on; None where both are."""
        others = [split for split in PER_CLASS if split not in self.splits]
        return self._read(others) if others else None

    def _read(self, splits: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The images of the chosen classes in some splits, and the numbers of their classes."""
        images, numbers = [], []
        for split in splits:
            dataset = read("CIFAR10", self.root, train=split == "train", damaged="is not whole, by its md5 sums")
            labels = torch.tensor(dataset.targets)
            chosen = torch.isin(labels, torch.tensor(self.classes))
            images.append(torch.from_numpy(dataset.data).permute(0, 3, 1, 2)[chosen])
            numbers.append(labels[chosen])
        return torch.cat(images).contiguous(), torch.cat(numbers)

    def labels(self) -> Tensor:
        """Class numbers of what :meth:`load` returned."""
        return self._labels


def class_number(name: int | str) -> int:
    """Number of a class given by number or name. Raises InvalidValueError for one that does not exist."""
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < 10:
        return name
    if name in CLASSES:
        return CLASSES.index(str(name))
    known = ", ".join(f"{i} {c}" for i, c in enumerate(CLASSES))
    raise InvalidValueError("classes", name, f"no such class; allowed are {known}")
