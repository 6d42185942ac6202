"""The one road from a command line to a run: compose, validate, build, run.

The command, :mod:`wganlab.notebook`, studies and searches, and the workers of Hydra's launchers all take it. A single
run is :func:`run`, many are :func:`sweep`, a run that goes on is :func:`resume`; each ends in
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
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from pydantic import PositiveInt

from wganlab import search
from wganlab.callbacks.interruption import StoppedError
from wganlab.config import (
    Composer,
    as_typed,
    composer,
    name_jobs_by_what_varies,
    parse,
    quote,
    raise_failure,
    split_sweep,
    without_hydra,
)
from wganlab.environment import is_further_rank, is_submitit, place, submitit_signals
from wganlab.folders import BUDGETS, check_folder, check_same_run, check_sweep, claimed_sweep
from wganlab.locks import BusyError
from wganlab.parallel import broadcast_object
from wganlab.places import at_hand, is_move
from wganlab.record import DIVERGED, train_in
from wganlab.runs import Run
from wganlab.schema import ConfigError, check_value
from wganlab.sweeps import run_sweep, stopping_workers
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
    stored = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
    stored.hydra.runtime.output_dir = str(folder.absolute())
    stored.hydra.mode = RunMode[stored.hydra.mode]
    return stored


def sweep(overrides: Sequence[str], *, config_dir: str | None = None, name: str = "train") -> int:
    """Make every run of a multirun, by Hydra's launcher, or search by its sweeper; returns the exit code.

    Each job is composed and checked once, before the first begins. Raises ConfigError for the first that cannot run,
    and BusyError when another process is at work on another sweep in the folder.
    """
    with composer(name, config_dir, parameters_at) as hydra:
        jobs = plan_sweep(hydra, overrides)
        context = hydra.context(jobs.master, jobs)
        context.callbacks.on_multirun_start(config=jobs.master, config_name=name)
        with raising_for_all_ranks(), stopping_workers(Path(jobs.master.hydra.sweep.dir)):
            code = jobs.search(context) if search.is_search(jobs.master.hydra) else jobs.launch(context)
        context.callbacks.on_multirun_end(config=jobs.master, config_name=name)
        return code


def plan_sweep(hydra: Composer, overrides: Sequence[str]) -> "Jobs":
    """The jobs of a multirun, not composed yet but for what they have in common."""
    overrides = as_typed(overrides, sweep=True)
    given = parse(overrides, hydra.loader)
    names = name_jobs_by_what_varies(given)
    fixed = [text for text, one in zip(overrides, given, strict=True) if not one.is_sweep_override()]
    master = compose_master(hydra, [*fixed, *names, "hydra.mode=MULTIRUN"])
    search.check_plugins(master.hydra, overrides)
    search.check_ranks(master.hydra)
    return Jobs(hydra, master, overrides)


def compose_master(hydra: Composer, fixed: list[str]) -> DictConfig:
    """What the jobs of a multirun have in common, with Hydra's own node: who launches them, and where to.

    What is fixed may only make sense beside what is swept, such as dataset.root beside dataset=: then it is left out.
    """
    try:
        master = hydra.compose(fixed)
    except ConfigError:
        master = hydra.compose([text for text in fixed if text.lstrip("+~").startswith("hydra")])
    folder = fix_folder(master, "hydra.sweep.dir")
    with read_write(master), open_dict(master):
        master.hydra.overrides.hydra.append(f"hydra.sweep.dir={quote(folder.as_posix())}")
    return master


class Jobs:
    """The jobs of a multirun. Hydra's launchers take it for the loader of their configs: each is composed once.

    A process that a launcher starts elsewhere composes and checks its own job anew.
    """

    def __init__(self, hydra: Composer, master: DictConfig, overrides: Sequence[str]) -> None:
        self.hydra, self.master = hydra, master
        self.overrides = [text for text in overrides if not text.lstrip("+~").startswith("hydra")]
        self.here = not search.runs_elsewhere(master.hydra)
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"composed": {}, "here": True}

    def load_sweep_config(self, master: DictConfig, overrides: Sequence[str], number: int = 0) -> DictConfig:
        """The checked config of one job, with Hydra's own node."""
        key = tuple(overrides)
        if key not in self.composed:
            config = self.hydra.compose(overrides, master)
            with open_dict(config):
                config.hydra.job.num, config.hydra.job.id = number, str(number)  # a launcher may give others
            check_budget(config, overrides)
            HydraConfig.instance().set_config(config)  # for ${hydra:...}
            validate(config, here=self.here)
            self.composed[key] = config
        OmegaConf.set_readonly(self.composed[key].hydra, None)  # launchers write into it
        return self.composed[key]

    def plan(self) -> tuple[list[list[str]], dict[str, DictConfig]]:
        """All combinations of the swept values: overrides of each job, and its checked config by name of its folder."""
        params = [f"{key}={value}" for key, value in (self.master.hydra.sweeper.get("params") or {}).items()]
        jobs = split_sweep(parse([*params, *self.overrides], self.hydra.loader))
        base, configs = Path(self.master.hydra.sweep.dir), dict[str, DictConfig]()
        for number, overrides in enumerate(jobs):
            config = self.load_sweep_config(self.master, overrides, number)
            name = str(config.hydra.sweep.subdir)
            if name in configs:
                raise ConfigError("hydra.sweep.dir", f"={base}: two jobs of the sweep would share the folder {name}")
            configs[name] = without_hydra(config)
        if not is_further_rank():  # rank zero may have begun
            check_sweep(base, configs)
            for name, config in configs.items():
                check_folder(base / name, config, in_sweep=True)
        return jobs, configs

    def launch(self, context: HydraContext) -> int:
        """Make all jobs by Hydra's launcher; returns the exit code."""
        (jobs, configs), base = self.plan(), Path(self.master.hydra.sweep.dir)
        if is_further_rank():  # it works in the folders of rank zero
            for overrides, (name, config) in zip(jobs, configs.items(), strict=True):
                HydraConfig.instance().set_config(self.load_sweep_config(self.master, overrides))
                train_in(base / name, config, may_continue=True)
            return broadcast_object(0)
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=self.master)
        size = self.master.hydra.sweeper.get("max_batch_size") or len(jobs)

        def launch_all(batches: list[list[int]]) -> None:
            """Launch every batch, whatever becomes of those before it; raises the first failure."""
            failures = []
            for batch in batches:
                try:
                    for done in launcher.launch([jobs[i] for i in batch], initial_job_idx=batch[0]):
                        if done.status == JobStatus.FAILED:
                            raise_failure(done)
                except Exception as error:
                    failures.append(error)
            if failures:
                raise failures[0]

        with claimed_sweep(base, configs):
            return broadcast_object(run_sweep(launch_all, [base / name for name in configs], size))

    def search(self, context: HydraContext) -> int:
        """Have Hydra's sweeper choose the jobs as it goes; returns the exit code."""
        fixed = [text for text in self.overrides if not parse([text], self.hydra.loader)[0].is_sweep_override()]
        config = self.load_sweep_config(self.master, fixed)
        if not config.callbacks.get("evaluation"):
            raise ConfigError("callbacks.evaluation", ": is off, and a search minimises what it measures")
        with search.resumed(self.master.hydra, without_hydra(config)) as changes:
            if changes is not None:
                with read_write(self.master), open_dict(self.master):
                    for key, value in changes.items():
                        OmegaConf.update(self.master.hydra.sweeper, key, value)
                sweeper = Plugins.instance().instantiate_sweeper(
                    hydra_context=context, task_function=job, config=self.master
                )
                sweeper.sweep(self.overrides)
        return 0


def fix_folder(config: DictConfig, key: str) -> Path:
    """The folder at a key of Hydra's, written into the config as it is now: the time of day is part of its default.

    Raises ConfigError when it cannot be formed.
    """
    HydraConfig.instance().set_config(config)
    try:
        folder = Path(OmegaConf.select(config, key))
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
        rule = "is a budget, and so is steps; give one of them, and the other as null"
        raise ConfigError("images", f"={config.images}: {rule}")


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
