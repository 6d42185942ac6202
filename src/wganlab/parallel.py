"""Arithmetic of one run on several ranks: together they make the run that one process would make.

All ranks draw the noise of the whole batch from the same stream of random numbers, and take their own rows of it and of
the real images: the run is that of a single process, up to the order of sums. Rank zero alone writes, observes and is
asked to stop, and its checkpoint is that of all. :mod:`wganlab.torchrun` starts and joins ranks.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """The number of ranks that share this run; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def local_rank() -> int:
    """The rank of this process among those of its machine, which names its device."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))) if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Whether this process is the one that writes, observes and takes signals."""
    return rank() == 0


def broadcast_object(value: Any) -> Any:
    """Rank zero's value, on every rank; it must be picklable."""
    if world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def shard(whole: Tensor) -> Tensor:
    """This rank's rows of a tensor of the whole batch, whose number of rows is a multiple of the ranks."""
    return whole if world_size() == 1 else whole.chunk(world_size())[rank()]


def all_reduce_mean(tensors: Sequence[Tensor | None]) -> list[Any]:
    """The mean over all ranks of each tensor, the same on every rank to the last bit. None stays None."""
    if world_size() == 1:
        return list(tensors)
    present = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.reshape(-1) for tensor in present])  # one message: many small ones take longer
    distributed.all_reduce(flat)
    parts = iter(flat.div_(world_size()).split([tensor.numel() for tensor in present]))
    return [None if tensor is None else next(parts).view(tensor.shape).to(tensor.dtype) for tensor in tensors]


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point tensors by those of rank zero, in place."""
    if world_size() == 1:  # before they are looked up: to walk the modules takes as long as a small layer
        return
    wanted = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not wanted:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in wanted])
    distributed.broadcast(flat, 0)
    for tensor, part in zip(wanted, flat.split([tensor.numel() for tensor in wanted]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def broadcast_flag(yes: bool, device: torch.device) -> bool:
    """Rank zero's answer, on every rank."""
    said = torch.tensor([float(yes)], device=device)
    broadcast([said])
    return bool(said.item())


class AllReduceSum(torch.autograd.Function):
    """The sum over all ranks, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return AllReduceSum.apply(gradient.contiguous())


def rank_mean(x: Tensor) -> Tensor:
    """The mean over all ranks of each rank's tensor, differentiable any number of times."""
    return x if world_size() == 1 else AllReduceSum.apply(x) / world_size()


def batch_rand(n: int, *shape: int, device: torch.device) -> Tensor:
    """U[0, 1) numbers for this rank's n samples, (n, *shape): its rows of those that all ranks draw."""
    return shard(torch.rand(n * world_size(), *shape, device=device))


def batch_rand_like(x: Tensor) -> Tensor:
    """U[0, 1) numbers for the values of this rank's batch: its rows of those that one process would draw for all.

    They lie in memory as x does, since that is the order in which they are drawn; in fp32, since bf16 numbers are too
    coarse for a probability.
    """
    whole = x if world_size() == 1 else torch.cat([x.detach()] * world_size())
    return shard(torch.rand_like(whole, dtype=torch.float32))


#: The layers that take statistics over a batch.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the batches of all ranks. torch's own runs on GPUs only and has no second derivative."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of any number of dimensions

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
        full = x.to(torch.promote_types(x.dtype, torch.float32))  # statistics in half precision would be too coarse
        average = rank_mean(full.mean(over))
        centred = full - average.view(shape)
        variance = rank_mean(centred.square().mean(over))
        if self.track_running_stats:
            self._track(average, variance, x.numel() // x.shape[1] * world_size())
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        return (normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal).to(x.dtype)

    @torch.no_grad()
    def _track(self, average: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics towards those of n values, by their unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(average, momentum)
        self.running_var.lerp_(variance * (n / (n - 1)), momentum)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Make every batch norm of a network take its statistics over the batches of all ranks."""
    for module in network.modules():
        if world_size() > 1 and isinstance(module, BATCH_NORMS):
            module.__class__ = SyncedBatchNorm  # the parameters stay those that the optimizers know
