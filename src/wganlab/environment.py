"""What the environment says of this process: whether torchrun, srun or submitit has started it, and what stops it.

Imports nothing heavy: the command reads its place before it knows what it needs.
"""

import os
import signal
import threading
from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Which of the processes that torchrun or srun has started this one is, and which of its machine."""

    rank: int
    world_size: int
    local_rank: int
    nodes: int


def place() -> Place | None:
    """This process' place among several, from RANK, WORLD_SIZE, ... of torchrun or from srun; None where it is alone.

    A batch script of Slurm is none of its tasks, though it has SLURM_PROCID: only srun counts the tasks of a step.
    """
    known = os.environ
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= known.keys():
        size, nodes = int(known["WORLD_SIZE"]), int(known.get("GROUP_WORLD_SIZE", 1))
        found = Place(int(known["RANK"]), size, int(known.get("LOCAL_RANK", 0)), nodes)
    elif {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= known.keys():
        size, nodes = int(known["SLURM_STEP_NUM_TASKS"]), int(known.get("SLURM_STEP_NUM_NODES", 1))
        found = Place(int(known["SLURM_PROCID"]), size, int(known.get("SLURM_LOCALID", 0)), nodes)
    else:
        return None
    return found if found.world_size > 1 else None


def is_further_rank() -> bool:
    """Whether this process is one of several, and not the one that writes, prints and takes signals."""
    here = place()
    return here is not None and here.rank > 0


def launches(asked: int) -> bool:
    """Whether a run with ``accelerator.devices=asked`` starts ranks of its own: not where each device has a process."""
    here = place()
    return asked > 1 and (here is None or is_one_per_node(here))


def is_one_per_node(here: Place) -> bool:
    """Whether srun has started one task on each machine, which may start ranks of its own."""
    return "RANK" not in os.environ and here.nodes == here.world_size


def devices(asked: int) -> int:
    """How many devices share a run with ``accelerator.devices=asked``.

    Raises InvalidValueError when torchrun or srun has started another number of processes.
    """
    here = place()
    if here is None:
        return asked
    if is_one_per_node(here):
        return asked * here.world_size
    if asked not in (1, here.world_size, here.world_size // here.nodes):
        starter = "torchrun" if "RANK" in os.environ else "srun"
        message = f"{starter} has started {here.world_size} processes; must be {here.world_size}"
        from wganlab.schema import InvalidValueError  # what it imports takes time, and --help does without

        raise InvalidValueError("devices", asked, message)
    return here.world_size


def is_submitit(number: int) -> bool:
    """Whether submitit takes this signal, with which a cluster announces that it will end the job."""
    return str(getattr(signal.getsignal(number), "__module__", "")).startswith("submitit")


def submitit_signals() -> list[int]:
    """Those of the user's signals, which Windows has not, that submitit takes."""
    return [number for number in user_signals() if is_submitit(number)]


def user_signals() -> list[int]:
    """SIGUSR1 and SIGUSR2, where the system has them."""
    return [number for name in ("SIGUSR1", "SIGUSR2") if (number := getattr(signal, name, None))]


def signals() -> Sequence[int]:
    """What asks a run to stop: SIGINT and SIGTERM; in a job of submitit its signal; on ranks what torch passes on."""
    if place() and (passed_on := os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE")):
        return [signal.Signals[name.strip()] for name in passed_on.split(",")]
    return submitit_signals() or [signal.SIGINT, signal.SIGTERM]


def ignore_signals() -> None:
    """On a further rank: what is for rank zero reaches all processes of a group that is signalled."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, *user_signals()):
            signal.signal(number, signal.SIG_IGN)
