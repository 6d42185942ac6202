"""All data of a source, read once, checked, and parted into those that are trained on and those that are held out."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wganlab.data import Source, labels_of
from wganlab.schema import ConfigError


class Data(NamedTuple):
    """All samples of a source with their labels, and those that it holds out itself, with theirs."""

    samples: Tensor
    labels: Tensor | None
    held_out: Tensor | None = None
    held_out_labels: Tensor | None = None


#: What was read last, by the config of its data set.
LAST_READ: dict[str, Data] = {}


def read_once(source: Source, described: str) -> Data:
    """All data of a source; jobs of a sweep that ask for the same in one process share them."""
    if described not in LAST_READ:
        LAST_READ.clear()  # before the next are read: never two at a time
        held_out = getattr(source, "held_out", None)
        data = checked(source, source.load(), labels_of(source))
        if len(data[0]) != len(source):
            fault = f": its load() returns {len(data[0]):,} samples, and its length is {len(source):,}"
            raise ConfigError("dataset", fault)
        apart = held_out() if held_out else None
        LAST_READ[described] = Data(*data, *(checked(source, *apart, of="held_out") if apart else ()))
    return LAST_READ[described]


def checked(source: Source, samples: Any, labels: Any, *, of: str = "load") -> tuple[Tensor, Tensor | None]:
    """Samples and labels of a source, if they are as :class:`wganlab.data.Source` says. Raises ConfigError if not."""
    shape = "x".join(map(str, source.shape))
    allowed = f"must be a tensor (n, {shape}), uint8 or floating-point"
    if not isinstance(samples, Tensor):
        raise ConfigError("dataset", f": what its {of}() returns is a {type(samples).__name__}; {allowed}")
    if samples.shape[1:] != tuple(source.shape) or not (samples.dtype == torch.uint8 or samples.is_floating_point()):
        found = f"{samples.dtype} of ({', '.join(map(str, samples.shape))})"
        raise ConfigError("dataset", f": what its {of}() returns is {found}; {allowed}")
    check_values(samples, of)
    if labels is None:
        return samples, None
    numbers = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not numbers or labels.shape != samples.shape[:1]:
        raise ConfigError("dataset", f": its labels must be a tensor of {len(samples)} whole numbers")
    return samples, labels.long()


def check_draw(source: Any) -> None:
    """Raises ConfigError where what an endless source draws is not samples and labels, or no labels."""
    drawn = source.draw(2, torch.Generator().manual_seed(0))
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        fault = f"a {type(drawn).__name__}; must be a pair of samples and labels, or None in their place"
        raise ConfigError("dataset", f": what its draw() returns is {fault}")
    checked(source, *drawn, of="draw")


def check_values(samples: Tensor, of: str) -> None:
    """Floating-point samples must be finite; of images in another range than generators make, a note says so.

    Raises ConfigError where they are not.
    """
    if not samples.is_floating_point():
        return
    if not (finite := torch.isfinite(samples).flatten(1).all(1)).all():
        fault = f"is not finite in {int((~finite).sum()):,} samples, the first of them {int((~finite).nonzero()[0])}"
        raise ConfigError("dataset", f": what its {of}() returns {fault}")
    low, high = samples.min().item(), samples.max().item()
    if of == "load" and samples.dim() == 4 and (low < -1 - 1e-3 or high > 1 + 1e-3 or (low >= 0 and high > 0)):
        print(f"note: the images are {low:g} to {high:g}, and generators that end in tanh make -1 to 1", flush=True)


def hold_out(n: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Which of n samples are trained on, and which are not: row numbers, always the same ones."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[held_out:].sort().values, order[:held_out].sort().values
