"""The 1,797 real handwritten digits that ship with scikit-learn: nothing to download."""

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
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images).float().unsqueeze(1) * (255 / 16)
        resized = interpolate(images, size=self.shape[1:], mode="bicubic", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8)

    def labels(self) -> Tensor:
        """Digits of what :meth:`load` returned."""
        from sklearn.datasets import load_digits

        return torch.from_numpy(load_digits().target)
