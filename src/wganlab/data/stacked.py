"""Stacked digits: three grey images as the channels of one, 1,000 modes of which every one counts the same."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from wganlab.data import Source, labels_of
from wganlab.schema import InvalidValueError

CHANNELS = 3


def classes_of(modes: Tensor, classes: int, channels: int) -> Tensor:
    """Classes of each channel (n, channels), of modes (n,): the digits of a number in base ``classes``."""
    places = torch.tensor([classes**place for place in reversed(range(channels))])
    return modes[:, None] // places % classes


class Stacked:
    """Images of three channels, each a grey one of ``base`` at random (Metz et al. 2017, arXiv 1611.02163, appendix D).

    With k classes in ``base`` there are k^3 modes, and each has as many of the ``n`` images as every other, so that the
    divergence from the data's modes is that from equal shares. The stacks are the same for every seed.
    Raises InvalidValueError for images that are not grey, without classes, and for an ``n`` that cannot be shared out.
    """

    def __init__(self, *, base: Source, n: PositiveInt = 50_000) -> None:
        if len(base.shape) != 3 or base.shape[0] != 1:
            raise InvalidValueError("base", type(base).__name__, "must be a data set of grey images")
        self.base, self.n = base, n
        self.shape: tuple[int, ...] = (CHANNELS, *base.shape[1:])

    def __len__(self) -> int:
        return self.n

    def load(self) -> Tensor:
        """uint8 of shape (n, 3, height, width)."""
        images, labels = self.base.load(), labels_of(self.base)
        if labels is None:
            raise InvalidValueError("base", type(self.base).__name__, "has no classes to stack")
        numbers = labels.unique(return_inverse=True)[1]
        classes = int(numbers.max()) + 1
        if self.n % classes**CHANNELS:
            allowed = f"must be a multiple of the {classes**CHANNELS:,} modes"
            raise InvalidValueError("n", self.n, allowed)
        random = torch.Generator().manual_seed(0)
        self._labels = torch.randperm(self.n, generator=random) % classes**CHANNELS
        channels = []
        for wanted in classes_of(self._labels, classes, CHANNELS).T:
            rows = torch.empty(self.n, dtype=torch.long)
            for number in range(classes):
                of_class, here = (numbers == number).nonzero().flatten(), wanted == number
                rows[here] = of_class[torch.randint(len(of_class), (int(here.sum()),), generator=random)]
            channels.append(images[rows])
        return torch.cat(channels, dim=1)

    def labels(self) -> Tensor:
        """Modes of what :meth:`load` returned, (n,): 100 a + 10 b + c where there are ten classes."""
        return self._labels
