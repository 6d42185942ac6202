"""Global state of the process that a test may change: saved before it, and put back after it."""

import functools
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import torch
import torch._dynamo.config
import wandb
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf.basecontainer import BaseContainer

from wganlab import loggers, parallel
from wganlab.data import reading
from wganlab.metrics import protocol

#: Facts of the machine and the checkout, which no test changes: measured once, since they take time.
FACTS = ("fastest_exact_matmul", "commit")

NEW_LOGGER = (logging.NOTSET, False, True)

Part = tuple[Callable[[], Any], Callable[[Any], object]]


def set_environment(before: dict[str, str]) -> None:
    for key in os.environ.keys() - before.keys():
        del os.environ[key]
    os.environ.update(before)


def set_path(before: tuple[list[str], set[str]]) -> None:
    """sys.path as it was, and none of a user's modules that were found in folders since taken off it."""
    added = tuple(f"{entry}/" for entry in sys.path if entry and entry not in before[0])
    sys.path[:] = before[0]
    for name in sys.modules.keys() - before[1] if added else ():
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(added) and name.partition(".")[0] not in ("wganlab", "tests", "benchmarks"):
            del sys.modules[name]


def log_levels() -> dict[str, tuple[int, bool, bool]]:
    """Level, disabled and propagate of each logger that has not all of them as a new one."""
    named = {name: log for name, log in logging.root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    found = {name: (log.level, log.disabled, log.propagate) for name, log in {"": logging.root, **named}.items()}
    return {name: values for name, values in found.items() if values != NEW_LOGGER}


def set_log_levels(before: dict[str, tuple[int, bool, bool]]) -> None:
    now = log_levels()
    for name in now.keys() | before.keys():
        if now.get(name) != before.get(name):
            log = logging.getLogger(name)
            level, log.disabled, log.propagate = before.get(name, NEW_LOGGER)
            log.setLevel(level)


def groups(repo: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config store's tree; the configs in it are shared."""
    return {key: groups(value) if isinstance(value, dict) else value for key, value in repo.items()}


def hydra_state() -> tuple[Any, ...]:
    return (
        dict(Singleton._instances),
        dict(BaseContainer._resolvers),
        groups(ConfigStore.instance().repo),
        GlobalHydra.instance().hydra,
        HydraConfig.instance().cfg,
    )


def set_hydra_state(before: tuple[Any, ...]) -> None:
    Singleton._instances, BaseContainer._resolvers = before[:2]
    ConfigStore.instance().repo, GlobalHydra.instance().hydra, HydraConfig.instance().cfg = before[2:]


def set_dynamo_config(before: dict[str, Any]) -> None:
    torch._dynamo.reset()  # the number of times that a function may be compiled counts up
    for key, value in torch._dynamo.config.get_config_copy().items():
        if value != before[key]:
            setattr(torch._dynamo.config, key, before[key])


def set_deterministic(before: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def set_cudnn(before: tuple[bool, bool]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def set_signal_handlers(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def seed_everything(_: object = None) -> None:
    """All global generators at the same point, in whatever order tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def forget(_: object = None) -> None:
    """Empty the caches of wganlab: a user's class or file of the same name is another one in the next test."""
    reading.LAST_READ.clear()
    protocol.REAL_SCORES.clear()
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "wganlab":
            for key, value in vars(module).items():
                if isinstance(value, functools._lru_cache_wrapper) and key not in FACTS:
                    value.cache_clear()


def end_wandb_session(_: object = None) -> None:
    """The next test's session of W&B reads the environment anew."""
    while run := loggers.open_run():
        run.finish()
    if loggers.session():
        wandb.teardown()


#: What is put back: how it is read, and how it is set. W&B comes first, as it writes to those that follow.
RESTORED: dict[str, Part] = {
    "W&B's session": (loggers.session, end_wandb_session),
    "environment": (lambda: dict(os.environ), set_environment),
    "working directory": (os.getcwd, os.chdir),
    "sys.argv": (lambda: [*sys.argv], lambda before: setattr(sys, "argv", before)),
    "sys.path": (lambda: ([*sys.path], {*sys.modules}), set_path),
    "garbage collection": (gc.get_threshold, lambda before: gc.set_threshold(*before)),
    "sys.exit": (lambda: sys.exit, lambda before: setattr(sys, "exit", before)),
    "sys.excepthook": (lambda: sys.excepthook, lambda before: setattr(sys, "excepthook", before)),
    "signal handlers": (
        lambda: {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)},
        set_signal_handlers,
    ),
    "log levels": (log_levels, set_log_levels),
    "log handlers": (lambda: [*logging.root.handlers], lambda before: setattr(logging.root, "handlers", before)),
    "Hydra": (hydra_state, set_hydra_state),
    "matplotlib": (
        lambda: dict.copy(matplotlib.rcParams),
        lambda before: dict.update(matplotlib.rcParams, before),
    ),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "deterministic algorithms": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        set_deterministic,
    ),
    "cuDNN": (
        lambda: (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        set_cudnn,
    ),
    "torch._dynamo.config": (torch._dynamo.config.get_config_copy, set_dynamo_config),
    "caches of wganlab": (lambda: len(reading.LAST_READ) + len(protocol.REAL_SCORES), forget),
}

#: What cannot be put back: a test that changes it fails.
UNTOUCHED: dict[str, Callable[[], Any]] = {
    "a W&B run that is open": loggers.open_run,
    "torch.distributed": torch.distributed.is_initialized,
    "number of ranks": parallel.world_size,
    "threads between operators": torch.get_num_interop_threads,
}


@contextmanager
def isolated() -> Iterator[None]:
    """Put back all of RESTORED afterwards. Raises AssertionError where something of UNTOUCHED has changed."""
    Plugins.instance()  # fills the config store, once for the process
    ConfigStore.instance(), GlobalHydra.instance(), HydraConfig.instance()
    before = {name: read() for name, (read, _) in RESTORED.items()}
    fixed = {name: read() for name, read in UNTOUCHED.items()}
    seed_everything()
    try:
        yield
    finally:
        changed = [name for name, read in UNTOUCHED.items() if read() != fixed[name]]
        for name, (_, restore) in RESTORED.items():
            restore(before[name])
        assert not changed, f"left behind for the next test: {', '.join(changed)}"
