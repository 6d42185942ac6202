"""One run in its folder: claimed, recorded in status.json whatever becomes of it, and made only once."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from wganlab import environment, loggers, parallel, torchrun
from wganlab.build import generator_steps
from wganlab.callbacks.interruption import StoppedError
from wganlab.files import from_here, write_json
from wganlab.folders import TRACES, already_holds_a_run, check_same_run, claimed, refuse_foreign, write_config
from wganlab.metrics import objective_of
from wganlab.places import prove
from wganlab.runs import Run, Status
from wganlab.schema import ConfigError
from wganlab.training import fit

#: What a diverged run is worth to a search: large, and finite, since some samplers fail on NaN.
DIVERGED = 1e9


def train_in(folder: Path, config: DictConfig, *, may_continue: bool) -> float | None:
    """Make the run of a checked config in a folder; returns, for searches that minimise, its final score.

    Where it ``may_continue``, a folder that holds the same run already goes on from its last checkpoint, or from the
    start where there is none; what is complete is left alone. Raises ConfigError for a folder that holds another run
    and BusyError when another process is at work in it; what the run raises is noted in status.json and raised again.
    Further ranks work in the folder that rank zero has claimed.
    """
    with torchrun.joined():
        if parallel.is_rank_zero():
            with claimed(folder):
                return train_as_rank_zero(folder, config, may_continue=may_continue)
        shared = parallel.broadcast_object(None)  # the folder; None where its run is complete
        if shared is not None:
            compute(config, Path(shared))
        return None


def train_as_rank_zero(folder: Path, config: DictConfig, *, may_continue: bool) -> float | None:
    """Make the run of a claimed folder, unless it is complete."""
    status = Run(folder).status if (folder / "status.json").exists() else {}
    if status:
        if not may_continue:  # somebody else's, begun since the check
            raise already_holds_a_run(folder)
        check_same_run(folder, config, "hydra.sweep.dir")
    elif not may_continue:
        refuse_foreign(folder, "hydra.run.dir")
    summary = summary_of_completed(folder, status, generator_steps(config))
    if summary is None:
        refuse_to_repeat(status)
        if status:  # what is refused leaves the run as it was
            check_continuable(folder, status)
            prove(config, folder)
        write_config(folder, config)
        summary = run(config, folder, status, in_sweep=may_continue)
    else:
        parallel.broadcast_object(None)
        made, budget = summary["steps"], summary.get("budget", summary["steps"])
        early = f" after {made:,} of {budget:,} steps, of which a higher steps= makes more" * (made < budget)
        print(f"already completed{early}: {from_here(folder)}", flush=True)
    objective = objective_of(summary["final"])
    return None if objective is None else objective[1] if math.isfinite(objective[1]) else DIVERGED


def summary_of_completed(folder: Path, status: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """The summary of a run that has made its steps, or was stopped by a callback with so many ahead, else None."""
    summary = Run(folder).summary if status.get("state") == Status.COMPLETED else {}
    return summary if summary.get("budget", summary.get("steps", 0)) >= steps else None


def check_continuable(folder: Path, status: Mapping[str, Any]) -> None:
    """Raises ConfigError for a completed run without its last checkpoint: it would begin again, and lose its rows."""
    if status.get("state") == Status.COMPLETED and not (folder / "checkpoints" / "last.ckpt").exists():
        raise ConfigError("run", f"={folder}: has no checkpoints/last.ckpt to go on from; begin a run in a new folder")


def refuse_to_repeat(status: Mapping[str, Any]) -> None:
    """A sweep that is taken up again after a worker has died does not repeat what has failed by itself."""
    sweep = os.environ.get("WGANLAB_SWEEP")
    if sweep and status.get("state") == Status.FAILED and status.get("sweep") == sweep:
        raise RuntimeError(status.get("error"))


def run(config: DictConfig, folder: Path, before: Mapping[str, Any], *, in_sweep: bool) -> dict[str, Any]:
    """Train, in this process or on ranks of it, and keep status.json at the truth.

    Nothing is left of a single run that is refused for its data; a sweep shows what its jobs were refused for.
    """
    status: dict[str, Any] = {
        "state": Status.RUNNING,
        "started": before.get("started") or now(),
        "finished": None,
        "error": None,
        "pid": os.getpid(),
        "sweep": os.environ.get("WGANLAB_SWEEP"),
        "wandb_id": before.get("wandb_id") or loggers.new_id(),
    }
    write_json(folder / "status.json", status)
    try:
        identity = run_identity(folder) | {"id": status["wandb_id"]}
        parallel.broadcast_object(str(folder))
        summary = compute(config, folder, identity)
    except BaseException as error:
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        message = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
        state = {"state": Status.STOPPED if stopped else Status.FAILED, "finished": now(), "error": message}
        with suppress(OSError):  # a full disk: what went wrong matters more than its record
            write_json(folder / "status.json", status | state)
        begun = before or any((folder / name).exists() for name in TRACES)
        if isinstance(error, ConfigError) and not (in_sweep or begun):
            take_back(folder)
        raise
    write_json(folder / "status.json", status | {"state": Status.COMPLETED, "finished": now()})
    early = f" of {summary['budget']:,}, ended by a callback or max_time," * (summary["steps"] < summary["budget"])
    print(
        f"completed {summary['steps']} generator steps{early} in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:,.0f} images/s): {from_here(folder)}",
        flush=True,
    )
    return summary


def take_back(folder: Path) -> None:
    """Leave nothing of a new run that was refused before it began."""
    for path in (folder / "status.json", *(folder / ".hydra").glob("*.yaml")):
        path.unlink(missing_ok=True)
    for empty in (folder / ".hydra", folder):
        with suppress(OSError):  # it holds something else
            empty.rmdir()


def compute(config: DictConfig, folder: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """:func:`fit` in this process, or on ranks that it starts. Raises ChildProcessError where a rank dies."""
    try:
        if not environment.launches(config.accelerator.get("devices", 1)):
            return fit(config, folder, identity)
        resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # the resolvers of Hydra stay here
        torchrun.launch(fit, resolved, folder, identity, devices=config.accelerator.devices)
    except torchrun.SignalError as error:
        raise StoppedError(error.number, "before its first step") from None
    except ChildProcessError as error:
        saved = (folder / "checkpoints" / "last.ckpt").exists()
        what = "the last checkpoint is good" if saved else "nothing was saved"
        raise ChildProcessError(f"{error}; {what}") from error
    return json.loads((folder / "summary.json").read_text()) if parallel.is_rank_zero() else {}


def run_identity(folder: Path) -> dict[str, Any]:
    """How W&B shows a run: named after its overrides, grouped by its sweep, tagged with its choices.

    A sweep of W&B's names and groups its runs itself.
    """
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    choices = [hydra.runtime.choices[group] for group in ("dataset", "model", "loss")]
    if loggers.in_agent():
        return {"tags": choices}
    return {
        "name": hydra.job.override_dirname or folder.name,
        "group": Path(hydra.sweep.dir).name if in_sweep else None,
        "tags": choices,
    }


def now() -> str:
    """The time, to the second, in ISO 8601 with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
