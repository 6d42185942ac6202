"""Where the vocabulary is, and how Hydra's complaints about it become one line each."""

import difflib
import hashlib
import inspect
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from wganlab.environment import is_further_rank
from wganlab.locks import is_locked
from wganlab.schema import ConfigError, leaves, locate

#: Longest name of a job's folder, in bytes; file systems allow 255.
MAX_FOLDER_NAME = 200


def conf_dir() -> Path:
    """conf/ of the checkout, or the copy inside an installed wheel."""
    here = Path(__file__).resolve()
    checkout = here.parents[2] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else here.parent / "conf"


def folder_name(overrides: str) -> str:
    """A job's overrides as the name of its folder: / becomes a dot; a hash stands for whatever else is changed."""
    overrides = re.sub(r"(^|,)\+", r"\1", overrides)
    name = re.sub(r"[^\w.,=+\-\[\]]", "_", overrides.replace("/", "."), flags=re.ASCII)
    if name != overrides.replace("/", ".") or len(name) > MAX_FOLDER_NAME:
        name = f"{name[:MAX_FOLDER_NAME]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return name or "defaults"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


@contextmanager
def vocabulary(name: str, overrides: Sequence[str], config_dir: str | None) -> Iterator[list[str]]:
    """Hydra made ready for conf/ and ``config_dir``: yields overrides that put the latter on its search path.

    Whatever Hydra or a broken YAML raises inside becomes a ConfigError of one line.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", f" {config_dir}: no such folder")
    extra = [f"hydra.searchpath=[{quote(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        forget_defaults_of_plugins()
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name=name):
            yield extra
    except ConfigError:
        raise
    except Exception as error:  # errors of Hydra, of OmegaConf, of YAML and of the disk
        raise one_line(error, name, overrides) from error


def forget_defaults_of_plugins() -> None:
    """Let the launchers and sweepers of conf/hydra/ stand for those that Hydra's plugins bring under the same names.

    Hydra would merge the two, and refuse what the plugin's does not have.
    """
    try:
        Plugins.instance()  # imports them all, once
    except Exception as error:  # whatever somebody else's plugin raises
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        named = [re.search(r"hydra_plugins/(\w+)", name) for name in frames]
        plugin = next((match[1] for match in named if match), "unknown")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f" {plugin} is installed and cannot be imported, which Hydra does not bear: uninstall it ({reason})"
        raise ConfigError("Hydra's plugin", message) from error
    for path in conf_dir().glob("hydra/*/*.yaml"):
        ConfigStore.instance().repo.get("hydra", {}).get(path.parent.name, {}).pop(path.name, None)


def compose_config(name: str, overrides: Sequence[str], *, config_dir: str | None = None) -> DictConfig:
    """Compose conf/<name>.yaml with overrides; the result has Hydra's own node, too.

    Raises ConfigError, in one line, for whatever Hydra refuses.
    """
    with vocabulary(name, overrides, config_dir) as extra:
        return compose(name, [*extra, *overrides], return_hydra_config=True)


def without_hydra(config: DictConfig) -> DictConfig:
    """The config as a job receives it."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def quote(text: str) -> str:
    """A text as a value of Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Overrides with the values of ``run`` and ``output`` quoted: folders of sweeps have = and , in their names."""
    quoted = []
    for override in overrides:
        key, _, value = override.partition("=")
        plain = key in ("run", "output") and value and value[0] not in "'\"$"
        quoted.append(f"{key}={quote(value)}" if plain else override)
    return quoted


def name_jobs_by_what_varies(overrides: Sequence[str]) -> list[str]:
    """The overrides of a multirun, and one more that keeps what all jobs share out of their names.

    The arm of a study and its seed stay in, however few are run: a job has the same name in every sweep of the study.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise one_line(error, "train", overrides) from error
    keys = [override.key_or_group for override in parsed]
    named = {"arms", "seed"} if "arms" in keys else set()
    named |= {override.key_or_group for override in parsed if override.is_sweep_override()}
    if not named and not {"search", "hydra/sweeper"} & set(keys):  # a search names its own
        return list(overrides)
    shared = [key for key in keys if key not in named]
    return [*overrides, f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quote, shared))}]"]


def fix_sweep_dir(overrides: Sequence[str], *, config_dir: str | None, name: str = "train") -> list[str]:
    """The overrides of a multirun, and its folder as a last one: ${now:...} is now, for all that follows."""
    config = compose_sweep(overrides, config_dir=config_dir, name=name)
    HydraConfig.instance().set_config(config)
    return [*overrides, f"hydra.sweep.dir={quote(job_folder(config, multirun=True)[0].as_posix())}"]


def compose_sweep(overrides: Sequence[str], *, config_dir: str | None, name: str = "train") -> DictConfig:
    """What the jobs of a multirun have in common, with Hydra's own node: who launches them, and where to.

    What is fixed may only make sense beside what is swept, such as dataset.root beside dataset=: then it is left out.
    """
    fixed = [override for override in OverridesParser.create().parse_overrides(list(overrides))
             if not override.is_sweep_override()]  # fmt: skip
    try:
        return compose_config(name, [str(override.input_line) for override in fixed], config_dir=config_dir)
    except ConfigError:
        about = [str(override.input_line) for override in fixed if override.key_or_group.startswith("hydra")]
        return compose_config(name, about, config_dir=config_dir)


def sweep_what_depends(overrides: Sequence[str], *, config_dir: str | None, name: str = "train") -> list[str]:
    """The overrides of a multirun such that Hydra can compose those that are fixed.

    It does so without the swept choices, so dataset.root beside dataset=mnist,cifar_horse would be unknown to it: where
    that fails, fixed values become sweeps over one value (null cannot, in Hydra's grammar).
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    try:
        fixed = [override for override in parsed if not override.is_sweep_override()]
        compose_config(name, [str(override.input_line) for override in fixed], config_dir=config_dir)
    except ConfigError:
        return [
            re.sub(r"=(.*)", r"=choice(\1)", override, count=1, flags=re.DOTALL)
            if one in fixed and not one.is_hydra_override() and not one.is_delete() and one.value() not in ("", None)
            else override
            for override, one in zip(overrides, parsed, strict=True)
        ]
    return list(overrides)


def jobs(
    overrides: Sequence[str],
    *,
    multirun: bool,
    config_dir: str | None = None,
    name: str = "train",
    folders: list[Path] | None = None,
) -> Iterator[DictConfig]:
    """The configs of all jobs of a command line, without Hydra's node, each while Hydra stands as it will in the job.

    Sweeps are formed as by Hydra's basic sweeper; other sweepers choose values as they go, and of theirs only
    what the sweep leaves fixed is composed. ``folders`` receives where each job will run, as far as that is known.
    Raises ConfigError for contradictions and for folders that are taken.
    """
    names: set[str] = set()
    for number, job in enumerate(sweep(overrides, name, config_dir) if multirun else [list(overrides)]):
        config = compose_config(name, job, config_dir=config_dir)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the config and in the names of folders
        given = {override.lstrip("+").partition("=")[0] for override in job}
        if "steps" in given and OmegaConf.to_container(config, resolve=False).get("images") is not None:  # type: ignore[union-attr]
            raise ConfigError(
                "images", f"={config.images}: is a budget, and so is steps; give one of them, and the other as null"
            )
        base, job_name = job_folder(config, multirun)
        if job_name in names:  # ${now:...} in the base may differ between jobs that are composed one after the other
            raise ConfigError("hydra.sweep.dir", f"={base}: two jobs of the sweep would share the folder {job_name}")
        names.add(job_name)
        if not is_further_rank():  # rank zero may have begun
            check_folder(base / job_name, without_hydra(config), multirun)
        if folders is not None and config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            folders.append(base / job_name)
        yield without_hydra(config)


def job_folder(config: DictConfig, multirun: bool) -> tuple[Path, str]:
    """Where a job runs: a folder, and its name in it. Raises ConfigError when they cannot be formed."""
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    try:
        return Path(OmegaConf.select(config, key)), str(config.hydra.sweep.subdir) if multirun else ""
    except OmegaConfBaseException as error:
        raise ConfigError(key, ": " + " ".join(str(error).split())) from error


def check_folder(folder: Path, config: DictConfig, multirun: bool) -> None:
    """Raises ConfigError when a job's folder is taken, by a file or by a run that is not the same job."""
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    if (folder / "status.json").exists():
        if not multirun:
            where = f"already holds a run; continue it with run={folder}, or give a new folder"
            raise ConfigError(key, f"={folder}: {where}")
        new = OmegaConf.to_container(config, resolve=False)
        check_same_job(folder, new, f"{key}={folder.parent}")  # type: ignore[arg-type]
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(key, f"={folder}: {existing} is no folder that can be written to; give another")


#: A continued run may have more of these, and nothing else may change.
BUDGETS = ("steps", "images")


def check_same_job(folder: Path, new: Mapping, key: str) -> None:
    """Raises ConfigError unless ``new`` is the config of the run in ``folder``, but for a higher budget."""
    try:
        old = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        old = None
    if not isinstance(old, dict):
        raise ConfigError(key, f": {folder}/.hydra/config.yaml is missing or damaged; give a new folder")
    before, after = dict(leaves(old)), dict(leaves(new))
    for name in [*before, *after]:
        was, wanted = before.get(name, "absent"), after.get(name, "absent")
        raised = name in BUDGETS and all(isinstance(n, int) for n in (was, wanted)) and wanted > was
        if raised and not is_further_rank() and is_locked(folder):
            raise ConfigError(name, f"={wanted}: cannot be raised now: {folder} is being worked on by another process")
        if was == "absent" and is_default(new, name, wanted):
            continue  # of a version that did not have the key yet
        if was != wanted and not raised:
            rule = "may only be raised" if name in BUDGETS else "cannot change in a run that is continued"
            raise ConfigError(name, f"={wanted}: {rule}; it is {was} in {folder}; give a new folder for a new run")


def is_default(config: Mapping, key: str, value: object) -> bool:
    """Whether the class that a key belongs to takes this value where the key is not given."""
    *path, name = key.split(".")
    node: object = config
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    if not path:
        from wganlab.build import settings as target
    elif isinstance(node, Mapping) and "_target_" in node:
        target = locate(node["_target_"])
    else:
        return False
    known = inspect.signature(target).parameters
    return name in known and bool(known[name].default == value)


def sweep(overrides: Sequence[str], name: str, config_dir: str | None) -> list[list[str]]:
    """The overrides of each job of a multirun."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    settings = compose_sweep(overrides, name=name, config_dir=config_dir).hydra
    with vocabulary(name, overrides, config_dir):
        loader = GlobalHydra.instance().config_loader()
        parse = OverridesParser.create(config_loader=loader).parse_overrides
        fixed = [str(override.input_line) for override in parse(list(overrides)) if not override.is_sweep_override()]
        sweeper = settings.sweeper
        if not sweeper._target_.endswith(".BasicSweeper"):
            return [fixed]
        params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        return BasicSweeper.split_arguments(parse([*params, *overrides]), max_batch_size=None)[0]


def one_line(error: Exception, name: str, overrides: Sequence[str] = ()) -> ConfigError:
    """Hydra's error as one line that names the key, what is wrong, and what is allowed."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return ConfigError(group, f"={choice}: no such choice; allowed are {', '.join(error.options)}")
    if isinstance(error, ConfigCompositionException):
        if unknown := re.search(r"Could not override '([^']+)'", text):
            return ConfigError(unknown[1], f": unknown key; {suggestion(unknown[1], name, overrides)}")
        if unknown := re.search(r"Could not override '?([\w/@.]+)'?\. No match in the defaults list", text):
            return ConfigError(unknown[1], f": unknown key; {suggestion(unknown[1], name, overrides)}")
    if unmatched := re.search(r"Could not delete(?: from config)?\.? '?([\w./@]+)'?", text):
        return ConfigError(f"~{unmatched[1]}", ": there is no such key to delete")
    if isinstance(error, OverrideParseException):
        return ConfigError(error.override, ": not an override of the form key=value")
    about = [override for override in overrides if not override.startswith("hydra.job.config.override_dirname")]
    return ConfigError(" ".join(about), f": {text}")


def suggestion(key: str, name: str, overrides: Sequence[str]) -> str:
    """What somebody who typed an unknown key may have meant, given the other overrides."""
    others = [override for override in overrides if override.partition("=")[0] != key]
    try:
        config = without_hydra(compose_config(name, others))
    except ConfigError:  # the others have mistakes of their own
        config = without_hydra(compose_config(name, []))
    known = {path for path, _ in leaves(OmegaConf.to_container(config, resolve=False))}
    known |= {path.rpartition(".")[0] for path in known} - {""}
    last = key.rpartition(".")[2]
    same = sorted(path for path in known if path.rpartition(".")[2] == last)
    close = same or difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {' or '.join(close)}?"
    parent = key.rpartition(".")[0]
    node = OmegaConf.select(config, parent) if parent else config
    allowed = list(node) if isinstance(node, DictConfig) else list(config)
    return "allowed are " + ", ".join(map(str, allowed))


def written_key(config: DictConfig, key: str) -> str:
    """The key that holds a value: follows interpolations such as ``lr: ${..lr}`` to what the user can set."""
    raw = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    reference = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", raw) if isinstance(raw, str) else None
    if reference is None:
        return key
    up = len(reference[1])
    base = key.split(".")[:-up] if up else []
    return written_key(config, ".".join([*base, reference[2]]))
