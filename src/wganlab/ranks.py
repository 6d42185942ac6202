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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning.plugins import LayerSync
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm


class Place(NamedTuple):
    """Which rank this process is, of how many."""

    rank: int = 0
    of: int = 1


#: Set once, where a process becomes a rank; so are the signals that the process which waits for it passes on.
HERE = Place()
PASSED_ON: list[int] = []


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


def share(whole: Tensor) -> Tensor:
    """This rank's rows of what is there for the whole batch; the number of rows is a multiple of the ranks."""
    return whole if HERE.of == 1 else whole.chunk(HERE.of)[HERE.rank]


def mean(tensors: Sequence[Tensor | None]) -> list[Any]:
    """The mean over all ranks of each tensor, the same on every rank to the last bit. None stays None."""
    if HERE.of == 1:
        return list(tensors)
    present = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.reshape(-1) for tensor in present])  # one message: many small ones take longer
    torch.distributed.all_reduce(flat)
    parts = iter(flat.div_(HERE.of).split([tensor.numel() for tensor in present]))
    return [None if tensor is None else next(parts).view(tensor.shape).to(tensor.dtype) for tensor in tensors]


class SyncedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks. torch's own runs on GPUs only and has no second derivative."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of any number of dimensions

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
        average = all_reduce(x.mean(over)) / HERE.of
        centred = x - average.view(shape)
        variance = all_reduce(centred.square().mean(over)) / HERE.of
        if self.track_running_stats:
            self._track(average, variance, x.numel() // x.shape[1] * HERE.of)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        return normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal

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


class SyncBatchNorm(LayerSync):
    """Lightning's way to have batch norm synchronised."""

    def apply(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = SyncedBatchNorm  # the parameters stay those that the optimizers know
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        return model


@dataclass
class Node:
    """One machine of a run: its number, and where rank 0 listens.

    As elsewhere, NODE_RANK, MASTER_ADDR and MASTER_PORT name them, or Slurm does for one task per node.
    """

    number: int
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
            raise ValueError(f"nodes={nodes}: each node needs {', '.join(missing)} in its environment")
        return cls(int(known["NODE_RANK"]), known["MASTER_ADDR"], int(known["MASTER_PORT"]))


def launch(work: Callable[..., Any], *arguments: Any, devices: int, node: Node, nodes: int = 1) -> None:
    """Call ``work(*arguments)`` on as many ranks of this node; returns when the first of them has finished.

    What rank 0 raises is raised here. Raises ChildProcessError when another rank fails or is killed: no rank outlives
    the others, and all die with this process. Of :func:`signals`, what this process receives reaches rank 0.
    """
    context = multiprocessing.get_context("spawn")  # after a fork, neither OpenMP nor CUDA would work
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, torch.get_num_threads() // devices)
    processes, ends = [], []
    for local in range(devices):
        end, other = context.Pipe(duplex=False)
        place = Place(node.number * devices + local, devices * nodes)
        options = {"local": local, "node": node, "place": place, "threads": threads, "signals": signals()}
        processes.append(context.Process(target=_rank, args=(other, options, work, arguments)))
        processes[-1].start()
        other.close()
        ends.append(end)
    first = node.number * devices
    try:
        with forwarded(processes[0]) if first == 0 else contextlib.nullcontext():
            _await(ends, processes, first)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _await(ends: list[Connection], processes: list[Any], first: int) -> None:
    """Wait for the first rank of this node, and raise what becomes of any before it has finished."""
    open_ends = list(ends)
    while ends[0] in open_ends:
        for end in wait(open_ends):
            assert isinstance(end, Connection)
            local = ends.index(end)
            open_ends.remove(end)
            try:
                error = end.recv()
            except EOFError:
                processes[local].join()
                code = processes[local].exitcode
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
                raise ChildProcessError(f"rank {first + local} {how}; the last checkpoint is good") from None
            if error is None:
                continue
            if first + local == 0:
                raise error
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ChildProcessError(f"rank {first + local} failed: {text}") from error
    for process in processes[1:]:
        process.join(10)  # it has made all its steps


def _rank(end: Connection, options: dict[str, Any], work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """What a rank's process does."""
    global HERE, PASSED_ON
    HERE, PASSED_ON = options["place"], options["signals"]
    node: Node = options["node"]
    with contextlib.suppress(RuntimeError):  # where the system has no such thing
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
    os.setpgrp()  # Ctrl-C is for the process that waits, which passes it on
    os.environ |= {
        "LOCAL_RANK": str(options["local"]),
        "NODE_RANK": str(node.number),
        "MASTER_ADDR": node.address,
        "MASTER_PORT": str(node.port),
    }
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    if HERE.rank:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    error: BaseException | None = None
    try:
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


@contextlib.contextmanager
def forwarded(process: Any) -> Iterator[None]:
    """SIGINT and SIGTERM go to another process for the length of the block, where Python lets them be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda n, _: os.kill(process.pid, n)) for number in signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
