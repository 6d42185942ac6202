"""The one road from a command line to a run: compose, validate, build, run.

The command, :mod:`wganlab.notebook`, studies and searches, and the workers of Hydra's launchers all take it. A single
run is :func:`run`, many are :func:`wganlab.sweeps.sweep`, a run that goes on is :func:`resume`; each ends in
:func:`wganlab.record.train_in`, which claims a folder and trains in it.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import raise_signal
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus, run_job
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import PositiveInt

from wganlab import search
from wganlab.callbacks.interruption import StoppedError
from wganlab.checks import check_value
from wganlab.config import Composer, composer, raise_failure, without_hydra
from wganlab.environment import is_further_rank, is_submitit, place, submitit_signals
from wganlab.folders import BUDGETS, check_folder, check_same_run
from wganlab.locks import BusyError
from wganlab.overrides import as_typed, parse
from wganlab.places import at_hand, is_move
from wganlab.record import DIVERGED, train_in
from wganlab.runs import Run
from wganlab.schema import ConfigError
from wganlab.validate import complete, parameters_at, validate

#: Errors whose message says all: no traceback is shown.
ONE_LINE = (ConfigError, BusyError, FloatingPointError, OSError)


def run(
    overrides: Sequence[str], *, config_dir: str | None = None, name: str = "train", configure_logging: bool = False
) -> Path:
    """Make one run, or continue the one that ``run=PATH`` names; returns its folder.

    ``name`` is that of the primary config. Raises ConfigError before anything is written, BusyError when another
    process is at work in the folder, and what the run raises.
    """
    if any(text.startswith("run=") for text in overrides):
        return resume(overrides)
    with composer(name, config_dir, parameters_at) as hydra:
        config, folder = plan_run(hydra, overrides)
        if is_further_rank():  # it works in the folder of rank zero
            train_in(folder, without_hydra(config), may_continue=True)
            return folder
        context = hydra.context(config)
        context.callbacks.on_run_start(config=config, config_name=name)
        with raising_for_all_ranks():
            done = run_job(job, config, "hydra.run.dir", None, context, configure_logging=configure_logging)
        context.callbacks.on_run_end(config=config, config_name=name, job_return=done)
    if done.status == JobStatus.FAILED:
        raise_failure(done)
    return folder


class EndOfAllRanksError(BaseException):
    """A job has failed that several processes share: no launcher of Hydra's may go on to the next."""


@contextmanager
def raising_for_all_ranks() -> Iterator[None]:
    """Raise what a job of several ranks has raised."""
    try:
        yield
    except EndOfAllRanksError as end:
        raise end.args[0] from None


def plan_run(hydra: Composer, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """The checked config of one run, with Hydra's own node, and its folder."""
    overrides = hydra.of_one_run(overrides)
    parse(overrides)
    config = hydra.compose([*overrides, "hydra.mode=RUN"])
    check_budget(config, overrides)
    if search.is_search(config.hydra):
        raise ConfigError("search", ": makes many runs, which takes -m: wganlab train -m ...")
    folder = fix_folder(config, "hydra.run.dir")
    validate(config)
    if not is_further_rank():  # rank zero may have begun
        check_folder(folder, without_hydra(config), in_sweep=False)
    return config, folder


def resume(overrides: Sequence[str]) -> Path:
    """Continue a run in its folder: its own config, with a higher budget, or with data that have moved.

    Returns the folder.
    """
    if flags := [text for text in overrides if "=" not in text]:
        raise ConfigError(" ".join(flags), ": only a higher steps= or images= can be given to a run that is continued")
    given = {one.key_or_group: one.value() for one in parse(as_typed(overrides, sweep=False))}
    found, changes = Run.open(str(given["run"])), {key: value for key, value in given.items() if key != "run"}
    budget = "steps" if found.config.get("images") is None else "images"
    for key in {*BUDGETS} & changes.keys() - {budget}:
        current = f"{budget}={found.config.get(budget)}"
        raise ConfigError(key, f"={changes[key]}: the budget of this run is {current}; raise that")
    changes = {key: value for key, value in changes.items() if str(value) != found.choices.get(key)}
    for key in changes.keys() & found.choices.keys():
        was = f"cannot change in a run that is continued; it is {found.choices[key]}"
        raise ConfigError(key, f"={changes[key]}: {was}; give a new folder for a new run")
    config = OmegaConf.create(found.config)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = stored_hydra(found.folder)  # for ${hydra:...}
    try:
        if "model" in config:
            complete(config)
        for key, value in changes.items():
            if key in BUDGETS:
                check_value(PositiveInt, value, key)
            if is_move(config, key, "", value):  # the folder that it is relative to is not recorded again
                value = os.path.abspath(os.path.expanduser(str(value)))
            OmegaConf.update(config, key, value, force_add=True)
        check_same_run(found.folder, config, "run")
        with at_hand(config, found) as config:
            validate(config)
            train_in(found.folder.absolute(), config, may_continue=True)
    finally:
        HydraConfig.instance().cfg = before
    return found.folder


def stored_hydra(folder: Path) -> Any:
    """Hydra's own settings as they were when a run began; the folder may have been moved since."""
    path = folder / ".hydra" / "hydra.yaml"
    if not path.is_file():
        raise ConfigError("run", f"={folder}: its .hydra/hydra.yaml is missing, with which it was begun")
    stored = OmegaConf.load(path)
    stored.hydra.runtime.output_dir = str(folder.absolute())
    stored.hydra.mode = RunMode[stored.hydra.mode]
    return stored


def fix_folder(config: DictConfig, key: str) -> Path:
    """The folder at a key of Hydra's, written into the config as it is now: the time of day is part of its default.

    Raises ConfigError when it cannot be formed.
    """
    HydraConfig.instance().set_config(config)
    try:
        named = OmegaConf.select(config, key)
        if not named:
            raise ConfigError(key, "=: is empty; give a folder")
        folder = Path(named).expanduser()
    except OmegaConfBaseException as error:
        raise ConfigError(key, ": " + " ".join(str(error).split())) from error
    if config.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir", "=true: paths in a config are those of where you are; must be false")
    OmegaConf.set_readonly(config.hydra, None)
    OmegaConf.update(config, key, folder.as_posix())
    return folder


def check_budget(config: DictConfig, overrides: Sequence[str]) -> None:
    """A budget is given in steps or in images. Raises ConfigError for both."""
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    if "steps" in given and OmegaConf.to_container(config, resolve=False).get("images") is not None:  # type: ignore[union-attr]
        # Optuna's plugin passes on no null
        one = "images=" if search.is_search(config.hydra) else "images=null beside steps"
        raise ConfigError("images", f"={config.images}: is a budget, and so is steps; give {one}, or no steps")


def job(config: DictConfig) -> float | None:
    """Hydra's task function: one run in the folder that Hydra names. Launchers ship it to their workers by name.

    Returns what a search minimises.
    """
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    try:
        return train_in(Path(hydra.runtime.output_dir), config, may_continue=in_sweep)
    except SystemExit as error:
        if submitit_signals():  # of which one has put the job into the queue again
            raise
        raise RuntimeError(f"sys.exit({error.code})") from error
    except Exception as error:
        if place():
            raise EndOfAllRanksError(error) from error
        if not in_sweep:
            raise
        if isinstance(error, FloatingPointError) and search.is_search(hydra):
            print(f"wganlab: {error}", file=sys.stderr)
            return DIVERGED
        if isinstance(error, StoppedError):  # the signal was meant for all jobs
            print(f"wganlab: {error}", file=sys.stderr)
            if is_submitit(error.number):  # the run is saved; now it may be queued again
                raise_signal(error.number)
            raise KeyboardInterrupt(error.exit_code) from error
        if not isinstance(error, ONE_LINE):
            traceback.print_exc()
        raise  # the other jobs go on
