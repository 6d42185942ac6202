"""Augmentation of what the critic sees."""

from typing import Protocol

from torch import Tensor


class Augmentation(Protocol):
    """A differentiable change of images (batch, *shape), real and generated alike, just before the critic."""

    def __call__(self, images: Tensor) -> Tensor:
        """The images that the critic sees, of the same shape."""
        ...
