"""The one road from a command line to a run."""

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
from wganlab.build import check, generator_steps
from wganlab.callbacks.interruption import StoppedError
from wganlab.files import write_json, write_text
from wganlab.locks import locked
from wganlab.runs import Run
from wganlab.training import fit

#: What a diverged run returns to a sweeper: large, and finite, since some fail on NaN.
WORST = 1e9


def train(config: DictConfig, *, changed: bool = False) -> float | None:
    """Hydra's job: one run in Hydra's output folder. Returns, for sweepers that minimise, the final ``eval/fid``, or
    where there is no extractor ``eval/emd``.

    A folder that holds a run already goes on from its last checkpoint, or from the start where there is none; what is
    complete is left alone. ``changed`` says that the folder's own config is to be replaced. Raises ConfigError when the
    config cannot run, BusyError when another process is at it; any other exception is written to status.json and
    raised again.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    check(config)
    with torchrun.joined():
        if parallel.is_rank_zero():
            return train_as_rank_zero(config, folder, changed=changed)
        shared = parallel.broadcast_object(None)  # the folder that rank zero has claimed; None: its run is complete
        if shared is not None:
            compute(config, Path(shared))
        return None


def train_as_rank_zero(config: DictConfig, folder: Path, *, changed: bool) -> float | None:
    """Claim the folder, and make its run unless it is complete."""
    with locked(folder):
        status = read_status(folder)
        summary = finished(folder, status, generator_steps(config))
        if summary is None:
            refuse_to_repeat(status)
            if changed:
                write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(config))
            summary = run(config, folder, status)
        else:
            parallel.broadcast_object(None)
            print(f"already completed: {os.path.relpath(folder)}", flush=True)
    value = summary["final"].get("eval/fid", summary["final"].get("eval/emd"))
    return value if value is None or math.isfinite(value) else WORST


def resume(folder: Path, config: DictConfig, *, changed: bool) -> None:
    """``wganlab train run=PATH``: continue a run in its folder, with its own config or one of a higher budget."""
    stored = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
    stored.hydra.runtime.output_dir = str(folder.absolute())  # it may have been moved
    stored.hydra.mode = RunMode[stored.hydra.mode]
    HydraConfig.instance().cfg = stored  # type: ignore[assignment]  # set_config wants types that a file has not
    train(config, changed=changed)


def read_status(folder: Path) -> dict[str, Any]:
    """What status.json says; empty for a new folder."""
    return Run(folder).status if (folder / "status.json").exists() else {}


def finished(folder: Path, status: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """The summary of a run that has made its steps, else None."""
    summary = Run(folder).summary if status.get("state") == "completed" else {}
    return summary if summary.get("steps", 0) >= steps else None


def refuse_to_repeat(status: Mapping[str, Any]) -> None:
    """A sweep that is taken up again after a worker has died does not repeat what has failed by itself."""
    sweep = os.environ.get("WGANLAB_SWEEP")
    if sweep and status.get("state") == "failed" and status.get("sweep") == sweep:
        raise RuntimeError(status.get("error"))


def run(config: DictConfig, folder: Path, before: Mapping[str, Any]) -> dict[str, Any]:
    """Train, in this process or on ranks of it, and keep status.json at the truth."""
    status: dict[str, Any] = {
        "state": "running",
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
        state = {"state": "stopped" if stopped else "failed", "finished": now(), "error": message}
        with suppress(OSError):  # a full disk: what went wrong matters more than its record
            write_json(folder / "status.json", status | state)
        raise
    write_json(folder / "status.json", status | {"state": "completed", "finished": now()})
    print(
        f"completed {summary['steps']} generator steps in {summary['seconds']:.1f} s "
        f"({summary['images_per_second']:,.0f} images/s): {os.path.relpath(folder)}",
        flush=True,
    )
    return summary


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
        saved = (
            "the last checkpoint is good" if (folder / "checkpoints" / "last.ckpt").exists() else "nothing was saved"
        )
        raise ChildProcessError(f"{error}; {saved}") from error
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
