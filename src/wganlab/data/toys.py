"""2-D toys of the WGAN-GP paper (arXiv 1704.00028, section 3 and figure 1), as its code makes them.

Endless by default: every batch is drawn anew. ``n`` fixes the number of points instead, drawn once with ``seed``.
"""

import math

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

LICENCE = "none needed: its points are drawn from a formula"


class Points:
    """A distribution in the plane. A new one overrides ``draw``."""

    shape: tuple[int, ...] = (2,)

    def __init__(self, *, n: PositiveInt | None = None, seed: NonNegativeInt = 0) -> None:
        self.n, self.seed = n, seed

    @property
    def endless(self) -> bool:
        """Whether the points never repeat."""
        return self.n is None

    def __len__(self) -> int:
        """Number of points. Raises TypeError when there is no end of them."""
        if self.n is None:
            raise TypeError("an endless source has no length")
        return self.n

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n fresh points, float32 of shape (n, 2), and the component that each comes from, shape (n,)."""
        raise NotImplementedError

    def load(self) -> Tensor:
        """All points of a fixed source, float32 of shape (len(self), 2)."""
        points, self._labels = self.draw(len(self), torch.Generator().manual_seed(self.seed))
        return points

    def labels(self) -> Tensor | None:
        """Components of what :meth:`load` returned; None where there are none."""
        return self._labels


class Gaussians(Points):
    """A mixture in equal parts: normal with standard deviation ``sd`` around ``centers``, all divided by ``scale``."""

    licence = LICENCE
    centers: Tensor
    sd: float
    scale: float

    def modes(self) -> tuple[Tensor, float]:
        """Where the modes are, shape (k, 2), and their standard deviation."""
        return self.centers / self.scale, self.sd / self.scale

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(self.centers), (n,), generator=random)
        noise = torch.randn(n, 2, generator=random) * self.sd
        return (self.centers[labels] + noise) / self.scale, labels


class Gaussians8(Gaussians):
    """Eight Gaussians on a circle of radius 2, standard deviation 0.02, divided by 1.414."""

    centers = torch.tensor([[2 * math.cos(i * math.pi / 4), 2 * math.sin(i * math.pi / 4)] for i in range(8)])
    sd, scale = 0.02, 1.414


class Gaussians25(Gaussians):
    """Gaussians on a 5x5 grid of spacing 2, standard deviation 0.05, divided by 2.828.

    Fixed sources hold equally many points of each, as the code's 100,000 do, in one shuffled order.
    """

    centers = torch.tensor([[2.0 * x, 2.0 * y] for x in range(-2, 3) for y in range(-2, 3)])
    sd, scale = 0.05, 2.828

    def load(self) -> Tensor:
        random = torch.Generator().manual_seed(self.seed)
        self._labels = (torch.arange(len(self)) % 25)[torch.randperm(len(self), generator=random)]
        return (self.centers[self._labels] + torch.randn(len(self), 2, generator=random) * self.sd) / self.scale


class SwissRoll(Points):
    """The first and third coordinates of scikit-learn's Swiss roll with noise 0.25, divided by 7.5."""

    licence = LICENCE

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, None]:
        # scikit-learn's formula: its own draws take NumPy's generators and cost more than a training step here
        t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=random))
        roll = torch.stack([t * t.cos(), t * t.sin()], dim=1)
        return (roll + 0.25 * torch.randn(n, 2, generator=random)) / 7.5, None


class ParallelLine(Points):
    """(0, U) with U uniform in [0, 1]: the real line of the parallel lines (arXiv 1701.07875, example 1)."""

    licence = LICENCE

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, None]:
        # the first n are those of the latents of as many samples with the same seed, as an evaluation takes them
        heights = torch.rand(2 * n, generator=random)[n:]
        return torch.stack([torch.zeros(n), heights], dim=1), None
