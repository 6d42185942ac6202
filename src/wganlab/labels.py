"""Labels that are asked of a generator, and how images of them lie in a grid."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wganlab.schema import ConfigError

#: Tells the random numbers of labels from those of latents, and of the order of images, with the same seed. Of a seed,
#: torch's generator takes the lowest 32 bits.
LABELS = 0x5EED1ABE


def random_labels(seed: int) -> torch.Generator:
    """The random numbers that labels are drawn by."""
    return torch.Generator().manual_seed(seed ^ LABELS)


def inputs(latents: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    """What a generator takes: latents (n, latent_dim), and labels (n,) where it takes such."""
    return (latents,) if labels is None else (latents, labels)


def spread(labels: Tensor, n: int) -> Tensor:
    """Labels (n,): equally many of each, side by side; where there are more of them, some."""
    return labels[torch.arange(n) * len(labels) // n]


class Classes(NamedTuple):
    """The classes of a data set, ascending, and how many samples each has: both (classes,)."""

    numbers: Tensor
    counts: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> "Classes":
        """Those of labels (n,)."""
        return cls(*labels.cpu().unique(return_counts=True))

    @classmethod
    def restored(cls, saved: Any) -> "Classes | None":
        """Those that a checkpoint holds; None where it holds none."""
        return None if saved is None else cls(*map(torch.as_tensor, saved))

    def draw(self, n: int, *, seed: int) -> Tensor:
        """Labels (n,), with the data's frequencies."""
        shares, random = self.counts.double(), random_labels(seed)
        return self.numbers[torch.multinomial(shares, n, replacement=True, generator=random)]

    def asked(self, labels: Sequence[int] | Tensor, n: int) -> Tensor:
        """Labels (n,): equally many of each that is asked for, side by side.

        Raises ConfigError for none, for more than n, and for one that the data do not have.
        """
        wanted, known = torch.as_tensor(labels).tolist(), self.numbers.tolist()
        shown = f"{known[0]} to {known[-1]}" if known == [*range(known[0], known[-1] + 1)] else f"{known}"
        if unknown := [label for label in wanted if label not in known]:
            raise ConfigError("labels", f"={wanted}: the data have no class {unknown[0]}; allowed are {shown}")
        if not wanted:
            raise ConfigError("labels", f"=[]: must name one or more; allowed are {shown}")
        if n < len(wanted):
            raise ConfigError("n", f"={n}: must be at least one for each of {len(wanted)} labels")
        return spread(torch.tensor([int(label) for label in wanted]), n)

    def in_rows(self, n: int) -> Tensor:
        """Labels of at most n images: a row of each class, where that makes two in a row; else as many as fit."""
        across = max(1, n // len(self.numbers))
        return self.numbers[:n].repeat_interleave(across)


def rows_of(labels: Tensor) -> tuple[Tensor, int] | None:
    """Which images (of labels (n,)) make a grid with one row per class, and its width; None for rows of one."""
    order = labels.argsort(stable=True)
    counts = labels.unique(return_counts=True)[1]
    across = int(counts.min())
    if across < 2:
        return None
    starts = counts.cumsum(0) - counts
    return order[(starts[:, None] + torch.arange(across)).flatten()], across
