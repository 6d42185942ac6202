"""The stream of real batches that the critic sees."""

from collections.abc import Iterator

import torch
from torch import Tensor


def to_unit_range(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 0..255 -> -1..1 in ``dtype``; floating-point samples (2-D points) keep their values."""
    return images.to(dtype).div_(127.5).sub_(1) if images.dtype == torch.uint8 else images.to(dtype)


class BatchStream:
    """One item per training step: ``n_critic`` fresh batches, shape (n_critic, batch_size, *shape), as stored.

    The images are drawn without replacement, epoch after epoch; the last partial batch of an epoch is dropped.
    The order is a function of ``seed`` alone, so arms that differ in n_critic see the same images in the same
    order, and the position in the stream is all the state there is.
    """

    def __init__(self, samples: Tensor, *, batch_size: int, n_critic: int, steps: int, seed: int) -> None:
        self.samples = samples
        self.batch_size, self.n_critic, self.steps, self.seed = batch_size, n_critic, steps, seed
        self.batches_per_epoch = len(samples) // batch_size
        if not self.batches_per_epoch:
            raise ValueError(f"batch_size={batch_size}: must be at most the number of samples, {len(samples)}")
        self.step = 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        while self.step < self.steps:
            first = self.step * self.n_critic
            rows = torch.stack([self._rows(first + i) for i in range(self.n_critic)])
            self.step += 1
            yield self.samples[rows]

    def _rows(self, batch: int) -> Tensor:
        """Row numbers of the batch-th batch of the stream; shape (batch_size,)."""
        epoch, position = divmod(batch, self.batches_per_epoch)
        if epoch != self._epoch:
            order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = epoch
            self._order = torch.randperm(len(self.samples), generator=order).to(self.samples.device)
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]
