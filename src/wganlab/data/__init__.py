"""Data sets: what real samples look like, how many there are, and how to read them.

A source is built from its YAML without reading any data, so that a wrong setting is refused at once; ``load``
reads everything into one tensor. Adding one is a class and a YAML.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Columns(NamedTuple):
    """What the values of a sample are, where they are columns of a table: shift + scale * value is in its units."""

    names: tuple[str, ...]
    shift: Tensor
    scale: Tensor

    def in_units(self, samples: Tensor) -> Tensor:
        """Samples (n, columns) in the units of the table, in fp64."""
        return samples.double().cpu() * self.scale + self.shift


class Source(Protocol):
    """A data set that is described before it is read.

    One that draws fresh samples for ever says so by a true ``endless`` and has ``draw(n, random)``, as
    :class:`wganlab.data.toys.Points`, instead of a length. One whose images may be mirrored left to right at random in
    training says so by a true ``flip``; one whose samples are rows of a table has their ``columns``, :class:`Columns`.
    One that has samples apart from those of ``load``, for scores to compare with, returns them as stored, with their
    labels, by ``held_out()``. ``licence``, of the class, is a sentence for the card of a trained generator.
    """

    #: Shape of one sample: (channels, height, width), or (dimensions,) of a point.
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Number of samples, known without reading them."""
        ...

    def load(self) -> Tensor:
        """All samples, of shape (len(self), *shape): uint8, whose 0 and 255 become -1 and 1 in the training step, or
        floating-point, taken as they are."""
        ...

    def labels(self) -> Tensor | None:
        """Class numbers of what ``load`` returned, shape (n,); None where there are no classes."""
        ...


def labels_of(source: Source) -> Tensor | None:
    """Class numbers of what a source has loaded; None where it has no classes, as somebody's own without ``labels``."""
    labels = getattr(source, "labels", None)
    return labels() if labels else None


def size(source: Source) -> int | None:
    """Number of samples; None for an endless source."""
    return None if getattr(source, "endless", False) else len(source)


def columns_of(source: Source) -> Columns | None:
    """The columns of a table, numbered where they have no names; None of images and of points in the plane."""
    columns: Any = getattr(source, "columns", None)
    if columns is None and len(source.shape) == 1 and source.shape != (2,):
        n = source.shape[0]
        columns = Columns(tuple(f"column_{i}" for i in range(1, n + 1)), torch.zeros(n), torch.ones(n))
    return columns
