"""The 1,797 real handwritten digits that ship with scikit-learn: nothing to download."""

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import interpolate


class Digits:
    """8x8 digits of 43 writers (UCI, Alpaydin & Kaynak 1998), grey values 0 to 16, upscaled once to size x size."""

    licence = "CC BY 4.0: UCI's Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998)"

    def __init__(self, *, size: PositiveInt = 28) -> None:
        self.shape: tuple[int, ...] = (1, size, size)

    def __len__(self) -> int:
        return 1797

    def load(self) -> Tensor:
        """uint8 of shape (1797, 1, size, size)."""
        images = table()[:, :-1].view(-1, 1, 8, 8).float() * (255 / 16)
        resized = interpolate(images, size=self.shape[1:], mode="bicubic", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8)

    def labels(self) -> Tensor:
        """Digits of what :meth:`load` returned."""
        return table()[:, -1].clone()


@functools.cache
def table() -> Tensor:
    """int64 of shape (1797, 65): 64 pixels, then the digit.

    Read from scikit-learn's folder, since its import would be a second of the start of every run on digits.
    """
    (folder,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    path = Path(folder, "datasets", "data", "digits.csv.gz")
    return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.int64))
