"""One run on several processes ("ranks"): rank 0 is the run, the others compute shares of its batches.

All ranks draw the noise of the whole batch from the same stream of random numbers, and take their own rows of it and of
the real images: the run is the one that a single process would make, up to the order of sums. So rank 0 alone writes,
observes and is asked to stop, its checkpoint is everybody's, and it ends the others when it ends.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import Tensor, nn
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm

from wganlab.schema import InvalidValueError

#: How long the nodes of a run may take to find one another.
RENDEZVOUS = timedelta(minutes=5)
#: How long a rank may be waited for, while the first one evaluates. On one machine a dead one is noticed at once.
PATIENCE = {"one node": timedelta(days=7), "several": timedelta(hours=1)}


class Place(NamedTuple):
    """Which rank this process is, of how many, and which device of its machine is its own."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


#: Set once, where a process becomes a rank; so are the signals that the process which waits for it passes on, and those
#: that have come before anybody could act on them.
HERE = Place()
PASSED_ON: list[int] = []
PENDING: list[int] = []


def world_size() -> int:
    """How many ranks share this run; 1 where it is not shared."""
    return HERE.world_size


def rank() -> int:
    """Which of them this process is."""
    return HERE.rank


def local_rank() -> int:
    """Which device of its machine is this process' own."""
    return HERE.local_rank


def is_rank_zero() -> bool:
    """Whether this process is the one that writes, observes and takes signals."""
    return rank() == 0


def is_submitit(number: int) -> bool:
    """Whether submitit takes this signal, with which a cluster announces that it will end the job."""
    return str(getattr(signal.getsignal(number), "__module__", "")).startswith("submitit")


def signals() -> list[int]:
    """What asks a run to stop: SIGINT and SIGTERM; in a job of submitit, which is told otherwise, that signal alone."""
    if PASSED_ON:
        return PASSED_ON
    if any(is_submitit(number) for number in (signal.SIGUSR1, signal.SIGUSR2)):
        return [number for number in (signal.SIGUSR1, signal.SIGUSR2) if is_submitit(number)]
    return [signal.SIGINT, signal.SIGTERM]


def shard(whole: Tensor) -> Tensor:
    """This rank's rows of what is there for the whole batch; the number of rows is a multiple of the ranks."""
    return whole if world_size() == 1 else whole.chunk(world_size())[rank()]


def all_reduce_mean(tensors: Sequence[Tensor | None]) -> list[Any]:
    """The mean over all ranks of each tensor, the same on every rank to the last bit. None stays None."""
    if world_size() == 1:
        return list(tensors)
    present = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.reshape(-1) for tensor in present])  # one message: many small ones take longer
    torch.distributed.all_reduce(flat)
    parts = iter(flat.div_(world_size()).split([tensor.numel() for tensor in present]))
    return [None if tensor is None else next(parts).view(tensor.shape).to(tensor.dtype) for tensor in tensors]


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give all ranks what the first one has, in place."""
    if world_size() == 1:  # before they are looked for: to walk the modules takes as long as a small layer
        return
    wanted = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not wanted:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in wanted])
    torch.distributed.broadcast(flat, 0)
    for tensor, part in zip(wanted, flat.split([tensor.numel() for tensor in wanted]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def broadcast_flag(yes: bool, device: torch.device) -> bool:
    """What the first rank says."""
    said = torch.tensor([float(yes)], device=device)
    broadcast([said])
    return bool(said.item())


class AllReduceSum(torch.autograd.Function):
    """The sum over all ranks, differentiable as often as is wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return AllReduceSum.apply(gradient.contiguous())


class SyncedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks. torch's own runs on GPUs only and has no second derivative."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of any number of dimensions

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
        full = x.to(torch.promote_types(x.dtype, torch.float32))  # statistics in half precision would be too coarse
        average = AllReduceSum.apply(full.mean(over)) / world_size()
        centred = full - average.view(shape)
        variance = AllReduceSum.apply(centred.square().mean(over)) / world_size()
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
    """Have every batch norm of a network see the batches of all ranks."""
    for module in network.modules():
        if world_size() > 1 and isinstance(module, _BatchNorm):
            module.__class__ = SyncedBatchNorm  # the parameters stay those that the optimizers know


@dataclass
class Node:
    """One machine of a run: its rank among them, and where rank 0 listens.

    As elsewhere, NODE_RANK, MASTER_ADDR and MASTER_PORT name them, or Slurm does for one task per node.
    """

    rank: int
    address: str
    port: int

    @classmethod
    def here(cls, nodes: int) -> "Node":
        """Raises ValueError when a run on several nodes is not told which one this is."""
        if nodes == 1:
            return cls(0, "127.0.0.1", find_free_network_port())
        known = os.environ
        if "SLURM_NODEID" in known and "MASTER_ADDR" not in known:
            address = SLURMEnvironment.resolve_root_node_address(known["SLURM_JOB_NODELIST"])
            return cls(int(known["SLURM_NODEID"]), address, 10_000 + int(known["SLURM_JOB_ID"]) % 50_000)
        if missing := [key for key in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in known]:
            raise InvalidValueError("nodes", nodes, f"each node needs {', '.join(missing)} in its environment")
        return cls(int(known["NODE_RANK"]), known["MASTER_ADDR"], int(known["MASTER_PORT"]))


def launch(
    work: Callable[..., Any], *arguments: Any, devices: int, node: Node, nodes: int = 1, backend: str = "gloo"
) -> None:
    """Call ``work(*arguments)`` on as many ranks of this node; returns when the first of them has finished.

    What rank 0 raises is raised here. Raises ChildProcessError when another rank fails or is killed: no rank outlives
    the others, and all die with this process. Of :func:`signals`, what this process receives reaches rank 0. The ranks
    share the threads of this process.
    """
    context = multiprocessing.get_context("spawn")  # after a fork, neither OpenMP nor CUDA would work
    first = node.rank * devices
    options: dict[str, Any] = {
        "node": node,
        "backend": backend,
        "parent": os.getpid(),
        "patience": PATIENCE["one node" if nodes == 1 else "several"],
        "threads": max(1, torch.get_num_threads() // devices),
        "signals": signals(),
    }
    processes: list[Any] = []
    ends: list[Connection] = []
    with Forwarding() if first == 0 else contextlib.nullcontext() as forwarding:
        try:
            for local_rank in range(devices):
                end, other = context.Pipe(duplex=False)
                place = Place(first + local_rank, devices * nodes, local_rank)
                processes.append(context.Process(target=_rank, args=(other, place, options, work, arguments)))
                processes[-1].start()
                other.close()
                ends.append(end)
            failed = _first_to_fail(ends, forwarding.pass_on if forwarding else None, processes[0].pid)
            if not failed:
                for process in processes[1:]:
                    process.join(10)  # it has made all its steps
                return
            for local_rank in [local_rank for local_rank, error in failed.items() if error is None]:
                processes[local_rank].join()
                code = processes[local_rank].exitcode
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                raise ChildProcessError(f"rank {first + local_rank} {how}")
            _raise(first, *next(iter(failed.items())))
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


#: What rank 0 sends when it can take signals.
READY = "ready"


def _first_to_fail(
    ends: list[Connection], pass_on: Callable[[int], None] | None, pid: int
) -> dict[int, BaseException | None]:
    """Local ranks that have failed before the first of this node has finished, in order: what each raised, or None
    where it was killed."""
    open_ends, failed = list(ends), dict[int, BaseException | None]()
    while ends[0] in open_ends or failed:
        ready = wait(open_ends, 2.0 if failed else None)
        for end in ready:
            assert isinstance(end, Connection)
            try:
                message = end.recv()
            except EOFError:
                failed[ends.index(end)] = None
                open_ends.remove(end)
                continue
            if message == READY:
                if pass_on:
                    pass_on(pid)
                continue
            open_ends.remove(end)
            if message is not None:
                failed[ends.index(end)] = message
        # where one has gone, others lose their connection to it, and may be heard of first
        if failed and not (ready and has_lost_another(next(iter(failed.values())))):
            break
    finished = ends[0] not in open_ends and 0 not in failed
    return {} if finished else failed


def has_lost_another(error: BaseException | None) -> bool:
    """Whether a rank failed because another one was gone, as far as torch's message tells."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("onnection", "NCCL", "gloo"))


def _raise(first: int, local_rank: int, error: BaseException | None) -> None:
    """Raise what a rank has raised: that of rank 0 as it is."""
    lost = has_lost_another(error)
    if first + local_rank == 0 and not lost and error is not None:
        raise error
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    what = "has lost another rank" if lost else "failed"
    raise ChildProcessError(f"rank {first + local_rank} {what} ({text})") from error


def _rank(
    end: Connection, place: Place, options: dict[str, Any], work: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """What a rank's process does."""
    global HERE, PASSED_ON
    HERE, PASSED_ON = place, options["signals"]
    with contextlib.suppress(RuntimeError):  # where the system has no such thing
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
    if os.getppid() != options["parent"]:  # it has died before
        os._exit(1)
    os.setpgrp()  # Ctrl-C is for the process that waits, which passes it on
    ignore_signals()
    if rank() == 0:
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: PENDING.append(number))
        end.send(READY)
    torch.set_num_threads(options["threads"])
    error: BaseException | None = None
    try:
        join(options["node"], options["backend"], options["patience"])
        work(*arguments)
    except BaseException as raised:
        error = raised
        error.add_note("".join(traceback.format_exception(raised)))  # a traceback itself cannot be sent
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever an exception of somebody else's does
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
    end.send(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch.distributed would wait for the others


def ignore_signals() -> None:
    """What is for the first rank, and reaches all where a group of processes is signalled, is not for this one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def join(node: Node, backend: str, patience: timedelta) -> None:
    """Make the process group of all ranks."""
    if backend == "nccl":
        torch.cuda.set_device(local_rank())
    store = torch.distributed.TCPStore(node.address, node.port, world_size(), rank() == 0, timeout=RENDEZVOUS)
    torch.distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=patience)


class Forwarding:
    """Within it, :func:`signals` go to another process, once it can take them, where Python lets them be handled."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.pid: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Forwarding":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.held.append(number)
        if self.pid is not None:
            self.pass_on(self.pid)

    def pass_on(self, pid: int) -> None:
        """Send what has been held back, and from now on what comes, to a process."""
        self.pid = pid
        while self.held:
            os.kill(pid, self.held.pop(0))
