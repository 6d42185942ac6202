"""The stream of real batches that the critic sees."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from wganlab import parallel
from wganlab.labels import random_labels
from wganlab.schema import InvalidValueError

Reshuffle = Literal["epoch", "step"]


def to_unit_range(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 0..255 -> -1..1 in ``dtype``; floating-point samples (2-D points) keep their values."""
    return images.to(dtype).div_(127.5).sub_(1) if images.dtype == torch.uint8 else images.to(dtype)


def to_bytes(images: Tensor) -> Tensor:
    """-1..1 -> uint8 0..255, rounded: the inverse, and what is saved of generated images."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def content_hash(content: Tensor) -> str:
    """A hash of what a tensor holds, and of its type and shape."""
    content = content.cpu().contiguous()
    hashed = hashlib.blake2b(f"{content.dtype} {tuple(content.shape)}".encode(), digest_size=16)
    hashed.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def same_content(saved: Mapping[str, Any], fingerprints: Mapping[str, str]) -> bool:
    """Whether a checkpoint is of data with these :meth:`BatchStream.fingerprints`; old ones do not know the labels."""
    return all(saved.get(key, value) == value for key, value in fingerprints.items())


def number_of_batches(n: int, batch_size: int, drop_last: bool) -> int:
    """Batches in one pass over n samples."""
    return n // batch_size if drop_last else -(-n // batch_size)


def fits(samples: Tensor, device: torch.device) -> bool:
    """Whether the samples take at most half of the free memory of a GPU; other devices share memory with the CPU."""
    return device.type != "cuda" or samples.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def fixed_rows(of: int, n: int) -> Tensor:
    """Up to n of so many rows at random, always the same ones: a folder's images come class by class."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(0))[:n]


class Batch(NamedTuple):
    """Real images (batch, *shape), their labels (batch,) and their rows (batch,) in the data set.

    Labels are there only for networks that take them, rows only for a training that asks for them. ``drawn`` are as
    many labels with the frequencies of the data, which the generator step takes; the last batch of a step has them.
    """

    images: Tensor
    labels: Tensor | None = None
    rows: Tensor | None = None
    drawn: Tensor | None = None


class BatchStream:
    """One item per generator step: a list of as many fresh batches as it has critic steps.

    Images are as stored, (batch_size, *shape). ``n_critic`` is the number of critic steps, or a function of the
    generator step, from 0. On several ranks each receives its share of the rows of every batch.

    The images are drawn without replacement, epoch after epoch; the last partial batch of an epoch is left out if
    ``drop_last``, else it is a smaller batch. The order is a function of ``seed`` alone, so arms that differ in
    n_critic see the same images in the same order, and the state is the position in the stream: generator steps and
    batches so far. With ``reshuffle="step"``, every generator step begins with a fresh shuffle of the whole set.

    The samples live on ``device`` as they are stored, a byte per pixel, where they take at most half of its free
    memory; otherwise they stay where they are and batches are sent. ``flip`` mirrors every image of an epoch left to
    right with probability 1/2, drawn with the order.

    For observers it also carries the ``source`` of the data, the ``labels`` of its samples, shape (n,), and samples
    that were ``held_out`` of it, as stored, with theirs. Batches hold labels only if ``labelled``, rows only if
    ``numbered``.
    """

    def __init__(
        self,
        samples: Tensor,
        *,
        source: Any = None,
        labels: Tensor | None = None,
        held_out: Tensor | None = None,
        held_out_labels: Tensor | None = None,
        batch_size: int,
        n_critic: int | Callable[[int], int],
        steps: int,
        seed: int,
        device: torch.device | None = None,
        flip: bool = False,
        labelled: bool = False,
        numbered: bool = False,
        drop_last: bool = True,
        reshuffle: Reshuffle = "epoch",
    ) -> None:
        if len(samples) < batch_size:
            raise InvalidValueError("batch_size", batch_size, f"must be at most the number of samples, {len(samples)}")
        self.numbered, self.reshuffle = numbered, reshuffle
        self.source, self.labels = source, labels
        self.held_out, self.held_out_labels = held_out, held_out_labels
        self.device = device or samples.device
        self.samples = samples.to(self.device) if fits(samples, self.device) else samples
        self.flip, self._mirrored = flip, torch.empty(0, dtype=torch.bool)
        self.batch_size, self.n_critic, self.steps, self.seed = batch_size, n_critic, steps, seed
        self._labels = labels.to(self.samples.device) if labelled and labels is not None else None
        #: Batches in one pass over the data; None where there are no passes.
        self.batches_per_epoch: int | None = number_of_batches(len(samples), batch_size, drop_last)
        self._period = number_of_batches(len(samples), batch_size, drop_last)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)
        self.step = self.batches = 0
        #: Real images that the critic has seen, by all ranks.
        self.images_seen = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Batch]]:
        while self.step < self.steps:
            n = self.n_critic(self.step) if callable(self.n_critic) else self.n_critic
            if self.reshuffle == "step":
                places = [(self.step, i % self._period) for i in range(n)]
            else:
                places = [divmod(self.batches + i, self._period) for i in range(n)]
            batches = [self._batch(*place) for place in places]
            if self._labels is not None:
                batches[-1] = batches[-1]._replace(drawn=self._drawn(len(self._rows(places[-1][1])), self._labels))
            self.step, self.batches = self.step + 1, self.batches + n
            self.images_seen += sum(len(self._rows(position)) for _, position in places)
            yield batches

    def _rows(self, position: int) -> Tensor:
        """Rows of the data in one batch of the current shuffle."""
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

    def _batch(self, epoch: int, position: int) -> Batch:
        """A batch by its position in a shuffle of the data, or a rank's share of it: batch_size / ranks rows."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._begin(torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        rows = parallel.shard(self._rows(position))
        batch = self.samples[rows]
        if self.flip:
            mirrored = self._mirrored[rows].view(-1, *[1] * (batch.dim() - 1))
            batch = torch.where(mirrored, batch.flip(-1), batch)
        labels = None if self._labels is None else self.to_device(self._labels[rows])
        return Batch(self.to_device(batch), labels, self.to_device(rows) if self.numbered else None)

    def _drawn(self, n: int, labels: Tensor) -> Tensor:
        """Labels of a generator step, or a rank's share of n: from a stream of their own, by seed and step alone."""
        rows = torch.randint(len(labels), (n,), generator=random_labels(self.seed * 1_000_003 + self.step))
        return self.to_device(labels[parallel.shard(rows).to(labels.device)])

    def to_device(self, samples: Tensor) -> Tensor:
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
        return self._rows_of(self.samples, self._fixed_rows(n))

    def fixed_labels(self, n: int) -> Tensor | None:
        """The labels of :meth:`fixed_samples`; None where there are no classes."""
        return self._rows_of(self.labels, self._fixed_rows(n))

    @property
    def holds_out(self) -> bool:
        """Whether some samples were held out."""
        return self.held_out is not None and len(self.held_out) > 0

    def fixed_held_out(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Up to n samples that were held out, as stored, always the same, and their labels."""
        assert self.held_out is not None
        rows = fixed_rows(len(self.held_out), n)
        return self._rows_of(self.held_out, rows), self._rows_of(self.held_out_labels, rows)

    def _rows_of(self, values: Any, rows: Tensor) -> Any:
        """Some rows of a tensor, on the device; None of none."""
        return None if values is None else self.to_device(values[rows.to(values.device)])

    def _fixed_rows(self, n: int) -> Tensor:
        return fixed_rows(len(self.samples), n)

    def fingerprint(self) -> str:
        """A hash of the samples: another one means other samples."""
        return content_hash(self.samples)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of samples and labels, as a checkpoint keeps them."""
        return {
            "fingerprint": self.fingerprint(),
            "fingerprint_of_labels": "" if self.labels is None else content_hash(self.labels),
        }

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "batches": self.batches, "images": self.images_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]
        if "batches" in state:
            self.batches = state["batches"]
        else:  # of version 1, where all steps had n_critic
            assert isinstance(self.n_critic, int)
            self.batches = self.step * self.n_critic
        self.images_seen = state.get("images", self.batches * self.batch_size)


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

    def fixed_labels(self, n: int) -> Tensor | None:
        labels = self.source.draw(n, torch.Generator().manual_seed(0))[1]
        return None if labels is None else labels.to(self.device)
