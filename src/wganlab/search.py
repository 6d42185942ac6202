"""Plugins of Hydra that launch jobs elsewhere or choose them as they go, and how a search by Optuna is continued."""

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wganlab.environment import place
from wganlab.locks import locked
from wganlab.schema import ConfigError, leaves

#: Package of Hydra's plugin -> the extra of wganlab that brings it, with versions that work together, and its library.
#: Joblib's comes with wganlab itself.
EXTRAS = {
    "hydra_joblib_launcher": ("", "joblib"),
    "hydra_submitit_launcher": ("slurm", "submitit"),
    "hydra_ray_launcher": ("ray", "ray"),
    "hydra_optuna_sweeper": ("optuna", "optuna"),
}


def check_plugins(hydra: DictConfig, overrides: Sequence[str]) -> None:
    """Raises ConfigError when a chosen launcher or sweeper, or what it stands on, is not installed or does not work."""
    nulls = [override for override in overrides if override.endswith("=null") and not override.startswith("hydra")]
    if nulls and is_search(hydra):
        advice = "cannot pass null on to its trials; set it in a YAML of your own (--config-dir)"
        raise ConfigError(nulls[0], f": Optuna's plugin {advice}")
    for key in ("launcher", "sweeper"):
        target = str(hydra[key]._target_)
        package = target.split(".")[1]
        if package not in EXTRAS:
            continue
        extra, library = EXTRAS[package]
        try:
            importlib.import_module(library)
            importlib.import_module(target.rpartition(".")[0])
            for module in ("_core", "_impl"):  # which the plugins import late
                if importlib.util.find_spec(f"hydra_plugins.{package}.{module}"):
                    importlib.import_module(f"hydra_plugins.{package}.{module}")
        except Exception as error:  # an import runs whatever code the module holds
            choice = hydra.runtime.choices.get(f"hydra/{key}")
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            what = f"'wganlab[{extra}]'" if extra else "wganlab"
            advice = f"pip install {what} brings versions that work together"
            raise ConfigError(f"hydra/{key}", f"={choice}: cannot be used here ({reason}); {advice}") from error


def check_ranks(hydra: DictConfig) -> None:
    """Raises ConfigError when torchrun or srun has started this process, and a launcher or sweeper starts others."""
    for key, basic in (("launcher", "BasicLauncher"), ("sweeper", "BasicSweeper")):
        if place() and not str(hydra[key]._target_).endswith(basic):
            choice = hydra.runtime.choices.get(f"hydra/{key}")
            raise ConfigError(f"hydra/{key}", f"={choice}: under torchrun and srun jobs run one after the other")


def runs_elsewhere(hydra: Any) -> bool:
    """Whether jobs run on machines that may be unlike this one."""
    ray = OmegaConf.select(hydra, "launcher.ray.init.address")
    return str(hydra.launcher._target_).endswith("SlurmLauncher") or bool(ray)


def is_search(hydra: Any) -> bool:
    """Whether jobs are chosen as it goes, by Optuna."""
    return "optuna" in str(hydra.sweeper._target_)


@contextmanager
def resumed(hydra: DictConfig, config: DictConfig) -> Iterator[dict[str, Any] | None]:
    """Begin a search, or take it up again with the same ``config``: yields the changes of ``hydra.sweeper`` with which
    Optuna makes the trials that are missing.

    Yields None where none is missing. Trials that were under way when the search was interrupted come first, with the
    same values, and so in the same folders: they go on from their checkpoints. At the end the best trial is printed.
    Raises BusyError when another process is at the search, ConfigError when its database cannot be used or its trials
    had another config, and ChildProcessError when none has completed.
    """
    folder = Path(hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        study = open_study(hydra)
        check_same_search(study, config, folder)
        state = importlib.import_module("optuna").trial.TrialState
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == state.RUNNING:
                study.tell(trial.number, state=state.FAIL)
                if trial.params:
                    with warnings.catch_warnings(action="ignore"):  # "experimental", it says
                        study.enqueue_trial(trial.params)
        found = sum(trial.state == state.COMPLETE for trial in trials)
        missing = hydra.sweeper.n_trials - found
        if found:
            print(f"continuing a search with {found} of {hydra.sweeper.n_trials} trials made", flush=True)
        seed = hydra.sweeper.sampler.get("seed")
        if missing > 0:
            # with the seed that it began with, Optuna would try the same values again
            new_seed = {} if seed is None else {"sampler.seed": seed + len(trials)}
            try:
                yield {"n_trials": missing} | new_seed
            except ValueError as error:
                if "No trials are completed" not in str(error):  # Optuna's plugin asks for the best of none
                    raise
        else:
            yield None
        report(open_study(hydra), folder)


def check_same_search(study: Any, config: DictConfig, folder: Path) -> None:
    """Raises ConfigError unless the trials of a search have had this config, but for what is searched."""
    now = {key: str(value) for key, value in leaves(OmegaConf.to_container(config, resolve=True))}
    before = study.user_attrs.get("config")
    if before is None:
        study.set_user_attr("config", now)
        return
    for key in [*before, *now]:
        if before.get(key) != now.get(key):
            raise ConfigError(
                key,
                f"={now.get(key)}: cannot change in a search that is continued; it was {before.get(key)} in {folder}; "
                "give a new folder (hydra.sweep.dir=) for a new search",
            )


def open_study(hydra: DictConfig) -> Any:
    """Optuna's study of a search. Raises ConfigError where it cannot be opened."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name, storage = hydra.sweeper.study_name, hydra.sweeper.storage
    if not name or not storage:
        raise ConfigError(
            "hydra.sweeper", f": study_name={name} and storage={storage}: both are needed, to continue the search"
        )
    try:
        return optuna.create_study(
            study_name=name, storage=storage, direction=hydra.sweeper.direction, load_if_exists=True
        )
    except Exception as error:  # of SQLAlchemy or Alembic, in versions that Optuna does not know, or of the disk
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        advice = "pip install 'wganlab[optuna]' brings versions that work together"
        raise ConfigError("hydra.sweeper.storage", f"={storage}: cannot be used ({reason}); {advice}") from error


def report(study: Any, folder: Path) -> None:
    """Print what a search has found."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        raise ChildProcessError(f"no trial of {folder} has completed: see status.json in its folders")
    best = study.best_trial
    values = " ".join(f"{key}={value}" for key, value in best.params.items())
    failed = len(trials) - len(complete)
    note = f", {failed} interrupted or failed" if failed else ""
    print(f"{len(complete)} trials{note}; the best came to {best.value:.4g}: {values}", flush=True)
