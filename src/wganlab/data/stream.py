"""The stream of real batches that the critic sees."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wganlab import parallel
from wganlab.schema import InvalidValueError


def to_unit_range(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 0..255 -> -1..1 in ``dtype``; floating-point samples (2-D points) keep their values."""
    return images.to(dtype).div_(127.5).sub_(1) if images.dtype == torch.uint8 else images.to(dtype)


def fits(samples: Tensor, device: torch.device) -> bool:
    """Whether the samples take at most half of the free memory of a GPU; other devices share memory with the CPU."""
    return device.type != "cuda" or samples.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


class Batch(NamedTuple):
    """Real images (batch, *shape) and their labels (batch,), or as many batches as a generator step needs.

    Labels are there only for networks that take them.
    """

    images: Tensor
    labels: Tensor | None = None

    def split(self) -> list["Batch"]:
        """The batches of several, one for each critic step."""
        labels = repeat(None) if self.labels is None else self.labels
        return [Batch(*pair) for pair in zip(self.images, labels, strict=False)]


class BatchStream:
    """One item per generator step: as many fresh batches as it has critic steps, (critic steps, batch_size, *shape).

    Images are as stored. ``n_critic`` is the number of critic steps, or a function of the generator step, from 0.
    On several ranks each receives its share of the rows of every batch.

    The images are drawn without replacement, epoch after epoch; the last partial batch of an epoch is dropped.
    The order is a function of ``seed`` alone, so arms that differ in n_critic see the same images in the same
    order, and the state is the position in the stream: generator steps and batches so far.

    The samples live on ``device`` as they are stored, a byte per pixel, where they take at most half of its free
    memory; otherwise they stay where they are and batches are sent. ``flip`` mirrors every image of an epoch left to
    right with probability 1/2, drawn with the order.

    For observers it also carries the ``source`` of the data, the ``labels`` of its samples, shape (n,), and samples
    that were ``held_out`` of it, as stored. Batches hold labels only if ``labelled``.
    """

    def __init__(
        self,
        samples: Tensor,
        *,
        source: Any = None,
        labels: Tensor | None = None,
        held_out: Tensor | None = None,
        batch_size: int,
        n_critic: int | Callable[[int], int],
        steps: int,
        seed: int,
        device: torch.device | None = None,
        flip: bool = False,
        labelled: bool = False,
    ) -> None:
        if len(samples) < batch_size:
            raise InvalidValueError("batch_size", batch_size, f"must be at most the number of samples, {len(samples)}")
        self.source, self.labels, self.held_out = source, labels, held_out
        self.device = device or samples.device
        self.samples = samples.to(self.device) if fits(samples, self.device) else samples
        self.flip, self._mirrored = flip, torch.empty(0, dtype=torch.bool)
        self.batch_size, self.n_critic, self.steps, self.seed = batch_size, n_critic, steps, seed
        self._labels = labels.to(self.samples.device) if labelled and labels is not None else None
        #: Batches in one pass over the data; None where there are no passes.
        self.batches_per_epoch: int | None = len(samples) // batch_size
        self._period = len(samples) // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)
        self.step = self.batches = 0

    def __len__(self) -> int:
        return self.steps

    @property
    def images_seen(self) -> int:
        """Real images that the critic has seen, by all ranks."""
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        while self.step < self.steps:
            n = self.n_critic(self.step) if callable(self.n_critic) else self.n_critic
            images, labels = zip(*[self._batch(self.batches + i) for i in range(n)], strict=True)
            self.step, self.batches = self.step + 1, self.batches + n
            labelled = self._labels is not None
            yield Batch(self._send(torch.stack(images)), self._send(torch.stack(labels)) if labelled else None)

    def _batch(self, number: int) -> Batch:
        """A batch of the stream, by its number, or a rank's share of it: batch_size / ranks rows."""
        epoch, position = divmod(number, self._period)
        if epoch != self._epoch:
            self._epoch = epoch
            self._begin(torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        rows = parallel.shard(self._order[position * self.batch_size : (position + 1) * self.batch_size])
        batch = self.samples[rows]
        if self.flip:
            mirrored = self._mirrored[rows].view(-1, *[1] * (batch.dim() - 1))
            batch = torch.where(mirrored, batch.flip(-1), batch)
        return Batch(batch, None if self._labels is None else self._labels[rows])

    def _send(self, samples: Tensor) -> Tensor:
        """To the device, without waiting for it."""
        if samples.device == self.device:
            return samples
        return (samples.pin_memory() if self.device.type == "cuda" else samples).to(self.device, non_blocking=True)

    def _begin(self, random: torch.Generator) -> None:
        """Make an epoch ready: the order of its samples, and which of them are mirrored."""
        self._order = torch.randperm(len(self.samples), generator=random).to(self.samples.device)
        if self.flip:
            self._mirrored = (torch.rand(len(self.samples), generator=random) < 0.5).to(self.samples.device)

    def fixed_samples(self, n: int) -> Tensor:
        """Up to n samples as stored, always the same, whatever the seed and the position of the stream."""
        rows = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(0))[:n]
        return self._send(self.samples[rows.to(self.samples.device)])

    def fingerprint(self) -> str:
        """A hash of the data: another one means other data."""
        content = self.samples.cpu().contiguous()
        hashed = hashlib.blake2b(f"{content.dtype} {tuple(content.shape)}".encode(), digest_size=16)
        hashed.update(content.numpy().data)
        return hashed.hexdigest()

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]
        if "batches" in state:
            self.batches = state["batches"]
        else:  # of version 1, where all steps had n_critic
            assert isinstance(self.n_critic, int)
            self.batches = self.step * self.n_critic


class EndlessStream(BatchStream):
    """Fresh samples for every batch, drawn in blocks by an endless ``source``."""

    BLOCK = 64  # batches

    def __init__(self, source: Any, *, device: torch.device, **options: Any) -> None:
        self.source, self.device = source, device
        fixed, labels = source.draw(self.BLOCK * options["batch_size"], torch.Generator().manual_seed(0))
        super().__init__(fixed.to(device), source=source, labels=labels, device=device, **options)
        self.batches_per_epoch = None
        self._order = torch.arange(len(self.samples), device=device)

    def _begin(self, random: torch.Generator) -> None:
        samples, labels = self.source.draw(len(self.samples), random)
        self.samples = samples.to(self.device)
        if self._labels is not None:
            self._labels = labels.to(self.device)

    def fixed_samples(self, n: int) -> Tensor:
        """n samples, always the same."""
        return self.source.draw(n, torch.Generator().manual_seed(0))[0].to(self.device)
