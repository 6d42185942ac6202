"""Run folders: who may write into one. A folder is claimed before anything is written into it."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from wganlab.files import write_json, write_text
from wganlab.locks import BusyError, is_locked, locked
from wganlab.places import is_move
from wganlab.runs import Run
from wganlab.schema import ConfigError, leaves
from wganlab.validate import complete

#: A continued run may have more of these, and nothing else may change.
BUDGETS = ("steps", "images")


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain containers, interpolations kept: what a run folder stores."""
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


#: What a run leaves behind, but for its status, which is written first.
TRACES = ("checkpoints", "metrics.csv", "samples", "summary.json")


def refuse_foreign(folder: Path, key: str) -> None:
    """Raises ConfigError for a folder that holds what a run would write over, or take for its own, and is no run."""
    if found := [name for name in TRACES if (folder / name).exists()]:
        raise ConfigError(key, f"={folder}: holds {found[0]} and no run (status.json); give a new folder")
    if (folder / "sweep.json").exists():
        raise ConfigError(key, f"={folder}: holds a sweep (sweep.json); give a new folder")


def check_folder(folder: Path, config: DictConfig, *, in_sweep: bool) -> None:
    """Refuse a folder that is taken, before anything is written.

    Raises ConfigError when it holds a file, a finished run, what is no run or, in a sweep, another job's; BusyError
    when another process makes a run in it.
    """
    key = "hydra.sweep.dir" if in_sweep else "hydra.run.dir"
    busy = folder.is_dir() and is_locked(folder)
    if busy and not in_sweep:
        raise BusyError(folder)
    if (folder / "status.json").exists():
        if not in_sweep:
            raise already_holds_a_run(folder)
        raised = check_same_run(folder, config, f"{key}={folder.parent}")
        if raised and busy:
            message = f"cannot be raised now: {folder} is being worked on by another process"
            raise ConfigError(raised, f"={config[raised]}: {message}")
    else:
        refuse_foreign(folder, key)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(key, f"={folder}: {existing} is no folder that can be written to; give another")


def already_holds_a_run(folder: Path) -> ConfigError:
    """Why a new run cannot begin in a folder."""
    message = "already holds a run; continue it with {0}, or give a new folder"
    return ConfigError("hydra.run.dir", f"={folder}: {message.format(shlex.quote(f'run={folder}'))}")


def check_same_run(folder: Path, config: DictConfig, key: str) -> str | None:
    """Raises ConfigError unless a checked config is that of the run in a folder, but for a higher budget or moved data.

    Returns the key of the budget that is higher, None where all is the same.
    """
    stored = OmegaConf.create(Run(folder).config)
    if "model" not in stored:
        raise ConfigError(key, f": {folder}/.hydra/config.yaml is missing or damaged; give a new folder")
    complete(stored)  # a run of an earlier version lacks the parameters that have come since
    before, after = dict(leaves(plain(stored))), dict(leaves(plain(config)))
    raised = None
    for name in dict.fromkeys([*before, *after]):
        was, wanted = before.get(name, "absent"), after.get(name, "absent")
        if was == wanted or is_move(config, name, was, wanted):
            continue
        if not (name in BUDGETS and all(isinstance(n, int) for n in (was, wanted)) and wanted > was):
            rule = "may only be raised" if name in BUDGETS else "cannot change in a run that is continued"
            raise ConfigError(name, f"={wanted}: {rule}; it is {was} in {folder}; give a new folder for a new run")
        raised = name
    return raised


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made where it is missing.

    Raises BusyError when another process does, and ConfigError for one that cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("hydra.run.dir", f"={folder}: cannot be made ({error.strerror})") from error
    with locked(folder):
        yield


def write_config(folder: Path, config: DictConfig) -> None:
    """Store what a run is made of, as Hydra would: config, overrides and Hydra's own settings."""
    stored = folder / ".hydra"
    stored.mkdir(exist_ok=True)
    hydra = HydraConfig.get()
    write_text(stored / "hydra.yaml", OmegaConf.to_yaml({"hydra": hydra}))
    write_text(stored / "overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))
    write_text(stored / "config.yaml", OmegaConf.to_yaml(config))


def check_sweep(folder: Path, jobs: Mapping[str, DictConfig]) -> None:
    """Refuse a folder of another sweep, before anything is written; ``jobs`` are by name of their folders.

    Raises BusyError when another process makes a sweep in it, and these are not some of its jobs; ConfigError where a
    job has been made there under another name, as in a sweep over more keys: it would be made, and counted, twice.
    """
    if (folder / "status.json").exists():
        raise ConfigError("hydra.sweep.dir", f"={folder}: holds a run (status.json); give a new folder")
    before = recorded(folder)
    now = digests(jobs)
    if folder.is_dir() and is_locked(folder) and not now.items() <= before.items():
        raise BusyError(folder)
    made = {digest: name for name, digest in before.items() if (folder / name / "status.json").is_file()}
    for name, digest in now.items():
        if name not in before and digest in made:
            message = f"its run {made[digest]} is {name} of this sweep; sweep over the same keys, or give a new folder"
            raise ConfigError("hydra.sweep.dir", f"={folder}: {message}")


@contextmanager
def claimed_sweep(folder: Path, jobs: Mapping[str, DictConfig]) -> Iterator[None]:
    """Hold a sweep's folder, or join another process in the same jobs, each of which one of the two makes.

    Raises what :func:`check_sweep` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
            write_json(folder / "sweep.json", recorded(folder) | digests(jobs))
        except BusyError:
            check_sweep(folder, jobs)
        yield


def recorded(folder: Path) -> dict[str, str]:
    """What sweep.json says of the jobs so far. Raises ConfigError where it is damaged."""
    record = folder / "sweep.json"
    try:
        return dict(json.loads(record.read_text())) if record.is_file() else {}
    except ValueError as error:
        raise ConfigError("hydra.sweep.dir", f"={folder}: its sweep.json is damaged; delete that file") from error


def digests(jobs: Mapping[str, DictConfig]) -> dict[str, str]:
    """A hash of the config of each job, by name of its folder."""
    contents = {name: json.dumps(plain(config), sort_keys=True, default=str) for name, config in jobs.items()}
    return {name: hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for name, text in contents.items()}
