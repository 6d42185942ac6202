"""A sweep as a whole: its jobs, planned and checked before the first begins, and what becomes of each."""

import multiprocessing
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from wganlab import search
from wganlab.config import Composer, composer, raise_failure, without_hydra
from wganlab.environment import is_further_rank, place
from wganlab.folders import check_folder, check_sweep, claimed_sweep
from wganlab.launch import check_budget, fix_folder, job, raising_for_all_ranks
from wganlab.locks import BusyError
from wganlab.overrides import as_typed, name_jobs_by_what_varies, parse, quote, split_sweep
from wganlab.parallel import broadcast_object
from wganlab.record import train_in
from wganlab.runs import Run, Status
from wganlab.schema import ConfigError
from wganlab.validate import parameters_at, validate

#: Seconds within which the runs of workers end their step and save.
PATIENCE = 60
#: Jobs that have not ended by themselves are launched again, so often without progress.
ATTEMPTS = 2


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


def run_sweep(launch: Callable[[list[list[int]]], object], folders: Sequence[Path], size: int) -> int:
    """Launch a sweep until every job has completed or failed by itself; returns the exit code.

    ``launch`` takes the positions of jobs in batches, each without gaps and of at most ``size``. A worker that is
    killed takes its launcher's other jobs with it: the sweep is launched again, and where that makes an end of none,
    what is left job by job. Where one has not completed, a table says what became of each.
    """
    os.environ["WGANLAB_SWEEP"] = secrets.token_hex(8)  # marks its failures, see record.refuse_to_repeat
    every = list(range(len(folders)))
    together = [every[i : i + size] for i in every[::size]]
    left, still_open, without_progress = every, len(folders) + 1, 0
    while True:
        failure: Exception | None = None
        try:
            launch([[i] for i in left] if without_progress else together)
        except Exception as error:  # of a job, which has left its record, or of the launcher
            failure = error
        left = [i for i in every if state(folders[i])[0] in (Status.ABSENT, Status.INTERRUPTED)]
        before, still_open = still_open, len(left)
        without_progress = 0 if still_open < before else without_progress + 1
        if failure is None or not left or without_progress == ATTEMPTS:
            return report(folders, failure)


@contextmanager
def stopping_workers(base: Path) -> Iterator[None]:
    """Within it, SIGTERM to this process stops the runs of the workers that it has started, too, once they have saved.

    Who signals one process, as ``timeout`` and ``kill`` do, would leave them at work with nobody to end them. Ranks of
    torchrun or srun start no workers, and keep what ends them.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        workers, until = multiprocessing.active_children(), time.monotonic() + PATIENCE
        for worker in workers:
            worker.terminate()
        while workers and time.monotonic() < until and any(map(is_at_work, base.rglob("status.json"))):
            time.sleep(0.1)
        raise KeyboardInterrupt(128 + number)

    def is_at_work(status: Path) -> bool:
        return Run(status.parent).state == Status.RUNNING

    if place() or threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def state(folder: Path) -> tuple[Status, str]:
    """The state of a job, and the first line of what went wrong."""
    if not (folder / "status.json").exists():
        return Status.ABSENT, ""
    status = Run(folder).status
    return status["state"], str(status.get("error") or "").partition("\n")[0]


def report(folders: Sequence[Path], failure: Exception | None) -> int:
    """Print the state of every job when not all have completed; the exit code says whether they have."""
    states = {folder: state(folder) for folder in folders}
    completed = sum(name == Status.COMPLETED for name, _ in states.values())
    if completed == len(folders):
        if failure is None or isinstance(failure, BusyError):  # what another process was at, it has completed
            return 0
        raise failure
    width = max(len(folder.name) for folder in folders)
    for folder, (name, error) in states.items():
        print(f"{name:<12}{folder.name:<{width}}  {error}".rstrip())
    if failure is not None and not any(error for _, error in states.values()):  # no job has said why
        print(f"wganlab: {type(failure).__name__}: {' '.join(str(failure).split())}", file=sys.stderr)
    print(f"{completed} of {len(folders)} jobs completed; the same command runs the others again", flush=True)
    return 1
