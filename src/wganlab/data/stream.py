"""The stream of real batches that the critic sees."""

import hashlib
from collections.abc import Iterator
from typing import Any

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


class BatchStream:
    """One item per training step: ``n_critic`` fresh batches, shape (n_critic, batch_size, *shape), as stored.

    On several ranks each receives its share of the rows of every batch.

    The images are drawn without replacement, epoch after epoch; the last partial batch of an epoch is dropped.
    The order is a function of ``seed`` alone, so arms that differ in n_critic see the same images in the same
    order, and the position in the stream is all the state there is.

    The samples live on ``device`` as they are stored, a byte per pixel, where they take at most half of its free
    memory; otherwise they stay where they are and batches are sent. ``flip`` mirrors every image of an epoch left to
    right with probability 1/2, drawn with the order.

    For observers it also carries the ``source`` of the data, the ``labels`` of its samples, shape (n,), and samples
    that were ``held_out`` of it, as stored.
    """

    def __init__(
        self,
        samples: Tensor,
        *,
        source: Any = None,
        labels: Tensor | None = None,
        held_out: Tensor | None = None,
        batch_size: int,
        n_critic: int,
        steps: int,
        seed: int,
        device: torch.device | None = None,
        flip: bool = False,
    ) -> None:
        if len(samples) < batch_size:
            raise InvalidValueError("batch_size", batch_size, f"must be at most the number of samples, {len(samples)}")
        self.source, self.labels, self.held_out = source, labels, held_out
        self.device = device or samples.device
        self.samples = samples.to(self.device) if fits(samples, self.device) else samples
        self.flip, self._mirrored = flip, torch.empty(0, dtype=torch.bool)
        self.batch_size, self.n_critic, self.steps, self.seed = batch_size, n_critic, steps, seed
        #: Batches in one pass over the data; None where there are no passes.
        self.batches_per_epoch: int | None = len(samples) // batch_size
        self._period = len(samples) // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)
        self.step = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        while self.step < self.steps:
            first = self.step * self.n_critic
            batches = [self._batch(first + i) for i in range(self.n_critic)]
            self.step += 1
            yield self._send(torch.stack(batches))

    def _batch(self, number: int) -> Tensor:
        """A batch of the stream, by its number, or a rank's share of it; shape (batch_size / ranks, *shape)."""
        epoch, position = divmod(number, self._period)
        if epoch != self._epoch:
            self._epoch = epoch
            self._begin(torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        rows = parallel.shard(self._order[position * self.batch_size : (position + 1) * self.batch_size])
        batch = self.samples[rows]
        if self.flip:
            mirrored = self._mirrored[rows].view(-1, *[1] * (batch.dim() - 1))
            batch = torch.where(mirrored, batch.flip(-1), batch)
        return batch

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
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


class EndlessStream(BatchStream):
    """Fresh samples for every batch, drawn in blocks by an endless ``source``."""

    BLOCK = 64  # batches

    def __init__(self, source: Any, *, device: torch.device, **options: Any) -> None:
        self.source, self.device = source, device
        block = self.fixed_samples(self.BLOCK * options["batch_size"])
        super().__init__(block, source=source, device=device, **options)
        self.batches_per_epoch = None
        self._order = torch.arange(len(self.samples), device=device)

    def _begin(self, random: torch.Generator) -> None:
        self.samples = self.source.draw(len(self.samples), random)[0].to(self.device)

    def fixed_samples(self, n: int) -> Tensor:
        """n samples, always the same."""
        return self.source.draw(n, torch.Generator().manual_seed(0))[0].to(self.device)
