"""Studies: a question, and the arms that answer it, swept by one command.

A study is a folder with study.yaml (see :func:`settings`) and arms/, a Hydra config group of one YAML per arm. Each
arm is ``# @package _global_``: it may override whatever conf/train.yaml composes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from wganlab.config import conf_dir
from wganlab.schema import ConfigError, check_call


def settings(*, question: str, sweep: Mapping[str, str | int]) -> None:
    """The keys of study.yaml and what they may be: its schema.

    ``sweep`` holds what runs unless the command line says otherwise: key -> values, as in a multirun.
    """


def studies() -> dict[str, Path]:
    """Name -> folder of every study in ./experiments and of those that come with wganlab."""
    places = [conf_dir().parent / "experiments", Path("experiments")]
    return {path.parent.name: path.parent for place in places for path in sorted(place.glob("*/study.yaml"))}


def find_study(name: str) -> Path:
    """The folder of a study, by its name or as a path. Raises ConfigError when there is none."""
    known = studies()
    folder = Path(name) if (Path(name) / "study.yaml").is_file() else known.get(name)
    if folder is None:
        raise ConfigError(name, f": no such study; allowed are {', '.join(known)}, or a folder with a study.yaml")
    return folder


def arm_names(folder: Path) -> list[str]:
    """The arms of a study. Raises ConfigError when it has none."""
    names = sorted(path.stem for path in folder.glob("arms/*.yaml"))
    if not names:
        raise ConfigError(str(folder), ": has no arms; each is a YAML in arms/")
    return names


def multirun(folder: Path, overrides: Sequence[str]) -> tuple[list[str], str]:
    """Arguments of ``wganlab train`` that run a study, and the folder of its sweep.

    The command line's values stand before those of study.yaml; ``arms`` are all arms unless it names some.
    """
    study = read_study(folder)
    given = {override.lstrip("+").partition("=")[0]: override.partition("=")[2] for override in overrides}
    where = f"outputs/study/{folder.resolve().name}"
    own = {"arms": ",".join(arm_names(folder)), **study["sweep"], "hydra.sweep.dir": where}
    chosen = own | {key: given[key] for key in own if key in given}
    rest = [override for override in overrides if override.lstrip("+").partition("=")[0] not in own]
    arguments = [f"{'+' if key == 'arms' else ''}{key}={value}" for key, value in chosen.items()]
    return ["-m", "--config-dir", str(folder), *arguments, *rest], chosen["hydra.sweep.dir"]


def read_study(folder: Path) -> dict:
    """What study.yaml says. Raises ConfigError where it is wrong."""
    path = folder / "study.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), ": " + " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise ConfigError(str(path), ": must hold question and sweep")
    check_call(settings, content, f"{path}: ")
    return content
