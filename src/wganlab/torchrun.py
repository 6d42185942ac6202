"""Ranks, the processes that share one run: joined where torchrun or srun has started them, started by torch otherwise.

    with joined(): ...                    # be a rank, where torchrun or srun has started this process as one of several
    launch(work, *arguments, devices=2)   # call work(*arguments) on ranks of this machine; raise what rank zero raises

torch is imported only where there are ranks.
"""

import ctypes
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from wganlab.environment import ignore_signals, is_further_rank, place, signals

#: How long ranks may take to find one another.
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
#: How long a collective operation may wait, while rank zero evaluates. A rank that has died is noticed at once.
COLLECTIVE_TIMEOUT = timedelta(days=1)
#: Seconds for which a rank that has failed leaves it to others to say why the run ends.
DEFERENCE = 5.0
#: The key of the store that holds the exit code of rank zero, once it has failed.
ENDED = "wganlab/ended"


class SignalError(Exception):
    """A signal has come before rank zero could act on it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def joined() -> Iterator[None]:
    """Be a rank of the process group, where torchrun or srun has started this process as one of several.

    Further ranks print nothing. A failure of rank zero ends them with its exit code.
    """
    here = place()
    if here is None or _is_initialized():
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else stack traces of C++ when another rank is gone
    import torch.distributed

    _set_master_of_slurm()
    store, *_ = next(torch.distributed.rendezvous("env://", here.rank, here.world_size, timeout=RENDEZVOUS_TIMEOUT))
    torch.distributed.init_process_group(
        store=store, rank=here.rank, world_size=here.world_size, timeout=COLLECTIVE_TIMEOUT
    )
    left = threading.Event()
    if here.rank > 0:
        ignore_signals()
        threading.Thread(target=_follow, args=(store, left), daemon=True).start()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if here.rank else nullcontext():
            yield  # rank zero prints for all
        torch.distributed.all_reduce(torch.zeros(1))  # rank zero may hold the store: none leaves before all have done
    except BaseException as error:
        if here.rank == 0:
            with suppress(RuntimeError):
                store.set(ENDED, str(exit_code(error)))
        defer_to_rank_zero()
        raise
    finally:
        left.set()
        torch.distributed.destroy_process_group()


def exit_code(error: BaseException) -> int:
    """The exit code of a process that ends with this exception."""
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1


def defer_to_rank_zero() -> None:
    """On a further rank that has failed: let rank zero say why, which ends this process if it has failed too."""
    if is_further_rank() and _is_initialized():
        time.sleep(DEFERENCE)


def _is_initialized() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _set_master_of_slurm() -> None:
    """MASTER_ADDR and MASTER_PORT for tasks of srun that have not been given them."""
    if "MASTER_ADDR" not in os.environ:
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        known = os.environ
        hosts = known.get("SLURM_STEP_NODELIST") or known.get("SLURM_JOB_NODELIST") or "127.0.0.1"
        known["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(hosts)
    os.environ.setdefault("MASTER_PORT", str(10_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 50_000))


def _follow(store: Any, left: threading.Event) -> None:
    """In a thread of a further rank: end its process when rank zero has failed, or the holder of the store is gone.

    The rank itself may wait in a collective operation, which NCCL does not end.
    """
    while not left.wait(0.5):
        code = 1
        with suppress(RuntimeError):
            if not store.check([ENDED]):
                continue
            code = int(store.get(ENDED))
        if not left.wait(DEFERENCE / 2):  # rank zero says why first: torchrun ends it when it sees another rank end
            os._exit(code)


def has_lost_another(error: BaseException) -> bool:
    """Whether a rank failed because another one was gone, by torch's message: it has no type for that with gloo."""
    words = ("onnection", "NCCL", "gloo")
    return isinstance(error, RuntimeError) and _is_initialized() and any(word in str(error) for word in words)


def launch(work: Callable[..., Any], *arguments: Any, devices: int) -> None:
    """Call ``work(*arguments)`` on as many ranks of this machine, and where srun has started a task on each of several
    machines, on all of them; returns when all ranks have returned.

    Raises what rank zero raises, ChildProcessError where another rank fails or one is killed, and SignalError where a
    signal comes before rank zero can act on it. The ranks share the threads of this process, and die with it.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # seconds in which rank zero may end its evaluation and save, before it is killed; torch allows 30
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    threads = max(1, torch.get_num_threads() // devices)
    with tempfile.TemporaryDirectory(prefix="wganlab-") as errors, _signals_raise(), _quiet():
        config = LaunchConfig(
            **_rendezvous(),
            nproc_per_node=devices,
            max_restarts=0,
            start_method="spawn",  # after a fork, neither OpenMP nor CUDA would work
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
            signals_to_handle=",".join(signal.Signals(number).name for number in signals()),
        )
        try:
            elastic_launch(config, _work)(work, arguments, errors, threads, os.getpid())
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                raise ChildProcessError(f"rank {rank} was killed by {name}") from None
            _raise_recorded(errors)
            raise ChildProcessError(f"rank {rank} exited with code {failure.exitcode}") from None
        except SignalException as error:
            _raise_recorded(errors)
            raise SignalError(error.sigval) from None


def _rendezvous() -> dict[str, Any]:
    """Where the launchers of a run meet: options of LaunchConfig."""
    here = place()
    if here is None:
        where: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
        return where | {"min_nodes": 1, "max_nodes": 1, "local_addr": "127.0.0.1"}
    from wganlab.parallel import broadcast_object

    with socket.socket() as free:
        free.bind(("", 0))
        port = broadcast_object(free.getsockname()[1])
    where = {"rdzv_backend": "static", "rdzv_endpoint": f"{os.environ['MASTER_ADDR']}:{port}", "run_id": "wganlab"}
    timeout = int(RENDEZVOUS_TIMEOUT.total_seconds())
    configs = {"rank": here.rank, "timeout": timeout}
    return where | {"min_nodes": here.nodes, "max_nodes": here.nodes, "rdzv_configs": configs}


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Within the block :func:`signals` raise SignalException, which ends the ranks with that signal.

    torch's launcher does so while ranks run, and leaves its handlers behind.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    def receive(number: int, frame: object) -> None:
        raise SignalException(f"received {signal.Signals(number).name}", signal.Signals(number))

    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in signals():
                before[number] = signal.signal(number, receive)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's launcher, which logs tracebacks of what is raised anyway."""
    parts = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")
    loggers = [logging.getLogger(name) for name in [*logging.root.manager.loggerDict] if name.startswith(parts)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _work(work: Callable[..., Any], arguments: Sequence[Any], errors: str, threads: int, parent: int) -> None:
    """What the process of a rank does that :func:`launch` has started."""
    import torch

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of Linux: die with the parent
    if os.getppid() != parent:  # it has died before
        os._exit(1)
    os.setpgrp()  # Ctrl-C is for the parent, which passes it on
    torch.set_num_threads(threads)
    try:
        with joined():
            work(*arguments)
    except BaseException as error:
        if isinstance(error, ChildProcessError):
            time.sleep(DEFERENCE / 2)  # the launcher is to find the rank that has died before this one
        _record(error, Path(errors, os.environ["RANK"]))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _record(error: BaseException, path: Path) -> None:
    """Leave what a rank has raised for the process that waits for it."""
    error.add_note("".join(traceback.format_exception(error)))  # a traceback itself cannot be sent
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # of a class that somebody else has written
        content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.rename(path)


def _raise_recorded(folder: str) -> None:
    """Raise what ranks have raised: that of rank zero as it is. Those that have lost another one come last."""
    found = {int(path.name): pickle.loads(path.read_bytes()) for path in Path(folder).glob("[0-9]*") if not path.suffix}
    for rank, error in sorted(found.items(), key=lambda item: (isinstance(item[1], ChildProcessError), item[0])):
        if rank == 0 or isinstance(error, ChildProcessError):
            raise error from None  # not from the launcher's report
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ChildProcessError(f"rank {rank} failed ({text})") from error
