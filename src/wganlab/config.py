"""Configs that Hydra composes from conf/ and from a user's folder.

This is the only module that imports what Hydra does not publish: its ``Callbacks``, without which no HydraContext for a
launcher can be made.
"""

import contextlib
import difflib
import functools
import io
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import MissingConfigException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from wganlab import ranges
from wganlab.overrides import as_typed, can_read, folder_name, parse, quote, unless
from wganlab.refusals import GROUP_VALUE, one_line, unknown_key
from wganlab.schema import ConfigError, leaves

#: Keys that may stand at a node of a config, by its dotted key, and their annotations.
ParametersAt = Callable[[DictConfig, str], Mapping[str, Any]]
#: Overrides that nobody has typed.
OWN_OVERRIDES = ("hydra.job.config.override_dirname", "hydra.mode=", "hydra.searchpath=")


def conf_dir() -> Path:
    """conf/ of the checkout, or the copy inside an installed wheel."""
    here = Path(__file__).resolve()
    checkout = here.parents[2] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else here.parent / "conf"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("unless", unless, replace=True)
ranges.register()


def is_text(hint: Any) -> bool:
    """Whether an annotation is that of any text."""
    return str in (hint, *get_args(hint))


def without_hydra(config: DictConfig) -> DictConfig:
    """The config as a job receives it."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def no_parameters(config: DictConfig, key: str) -> dict[str, Any]:
    """Only the keys of the YAMLs are known."""
    return {}


class Composer:
    """Composes conf/<name>.yaml with overrides, while Hydra is set up for it: see :func:`composer`."""

    def __init__(self, name: str, config_dir: str | None, loader: ConfigLoader, parameters_at: ParametersAt) -> None:
        self.name, self.loader = name, loader
        self.parameters_at = parameters_at
        folder = Path(config_dir or ".").resolve()
        self.search_path = [f"hydra.searchpath=[{quote(f'file://{folder}')}]"] if config_dir else []
        #: Keys that no YAML shows, and that are parameters of the constructor all the same.
        self.parameters: set[str] = set()

    def compose(self, overrides: Sequence[str], master: DictConfig | None = None) -> DictConfig:
        """The config with Hydra's own node; of one job of a multirun, where its ``master`` is given.

        A key that no YAML shows may be given as if it were there, where the constructor has a parameter of that name.
        Raises ConfigError, in one line, for whatever Hydra refuses.
        """
        prefer_own_choices()  # again in a launcher's worker, where Hydra has imported its plugins anew
        given = self.as_hydra_takes(overrides)
        try:
            if master is None:
                config = compose(self.name, [*self.search_path, *given], return_hydra_config=True)
            else:
                config = self.loader.load_sweep_config(master, given)
        except Exception as error:  # of Hydra, of OmegaConf, of YAML and of the disk
            key, hint = unknown_key(error), ""
            if key:
                others = functools.cache(functools.partial(self._without, key, overrides, master))
                if key not in self.parameters and (found := self._with_parameter(key, overrides, master, others)):
                    return found
                hint = self._suggestion(key, others())
            if GROUP_VALUE in str(error):
                hint = next(filter(None, map(self._choices, overrides)), "")
            if isinstance(error, MissingConfigException) and error.options is None:  # of a list, or named by a YAML
                group, _, choice = (error.missing_cfg_file or "").rpartition("/")
                if any(text.lstrip("+").startswith(f"{group}=") and choice in text for text in overrides):
                    error.options = self.loader.get_group_options(group)
            about = [text for text in overrides if not text.startswith(OWN_OVERRIDES)]
            raise one_line(error, about, hint) from error
        with read_write(config), open_dict(config):
            config.hydra.output_subdir = None  # a folder is written into by the run that has claimed it
        return config

    def as_hydra_takes(self, overrides: Sequence[str]) -> list[str]:
        """The overrides with those marked that add a parameter which no YAML shows."""
        return [f"++{text}" if text.partition("=")[0] in self.parameters else text for text in overrides]

    def of_one_run(self, overrides: Sequence[str]) -> list[str]:
        """:func:`as_typed`, but commas are those of a sweep that lacks its -m where a key does not hold any text."""
        typed = []
        for override, quoted in zip(overrides, as_typed(overrides, sweep=False), strict=True):
            key = override.partition("=")[0].lstrip("+")
            keep = quoted != override and can_read(override, sweep=True) and not self._holds_text(key, overrides)
            typed.append(override if keep else quoted)
        return typed

    def _holds_text(self, key: str, overrides: Sequence[str]) -> bool:
        """Whether the value of a key is a text, and may be any."""
        if key.startswith("hydra."):
            return True
        parent, _, name = key.rpartition(".")
        others = [text for text in as_typed(overrides, sweep=False) if text.lstrip("+").partition("=")[0] != key]
        try:
            return is_text(self.parameters_at(without_hydra(self.compose(others)), parent).get(name))
        except ConfigError:
            return False

    def context(self, config: DictConfig, loader: Any = None) -> HydraContext:
        """What Hydra's launchers work with; ``loader`` may stand for Hydra's own."""
        return HydraContext(config_loader=loader or self.loader, callbacks=Callbacks(config))

    def _with_parameter(
        self, key: str, overrides: Sequence[str], master: DictConfig | None, others: Callable[[], DictConfig]
    ) -> DictConfig | None:
        """The config with a key that no YAML shows; None where it is no parameter of what stands at its node, there or
        among the ``others``, before an override deletes it."""
        parent, _, name = key.rpartition(".")
        self.parameters.add(key)
        try:
            config = self.compose(overrides, master)
            # the others are seldom needed, and take as long
            if name in self.parameters_at(config, parent) or name in self.parameters_at(others(), parent):
                return config
        except ConfigError as error:
            if isinstance(error.__cause__, Exception) and unknown_key(error.__cause__) not in ("", key):
                self.parameters.discard(key)
                raise
        self.parameters.discard(key)
        return None

    def _without(self, key: str, overrides: Sequence[str], master: DictConfig | None) -> DictConfig:
        """What the other overrides compose to, before any deletes its node; the config without any where they fail."""
        others = [text for text in overrides if text.lstrip("+").partition("=")[0] != key]
        others = [text for text in others if not (text.startswith("~") and key.startswith(text[1:]))]
        try:
            return without_hydra(self.compose(others, master))
        except ConfigError:
            return without_hydra(self.compose([], master))

    def _choices(self, override: str) -> str:
        """What may be given for a config group, where an override gives a value that is no text."""
        key, _, value = override.partition("=")
        choices = self.loader.get_group_options(key)
        if not choices or isinstance(parse([override])[0].value(), str | list):
            return ""
        return f"{key}={value}: no such choice; allowed are {', '.join(choices)}"

    def _suggestion(self, key: str, config: DictConfig) -> str:
        """What somebody who typed an unknown key may have meant."""
        if key.startswith("hydra."):
            return "wganlab train --cfg hydra lists Hydra's own"
        if self.name == "train" and (options := self.loader.get_group_options(key)):
            return f"+{key}= chooses one of {', '.join(options)}"
        if "/" in key:
            return self._group_suggestion(key)
        parts = key.split(".")
        for i in range(1, len(parts)):  # loss.regularizer.r1.weight, where r1 is not chosen
            group, choice, there = "/".join(parts[:i]), parts[i], OmegaConf.select(config, ".".join(parts[: i + 1]))
            if there is None and choice in self.loader.get_group_options(group):
                return f"{choice} is not chosen, which {group}={choice} does"
        parent, _, last = key.rpartition(".")
        known = {path for path, _ in leaves(OmegaConf.to_container(config, resolve=False))}
        known |= {path.rpartition(".")[0] for path in known} - {""}
        if key in known:
            return f"give keys in it, {key}.KEY=VALUE"
        if same := sorted(path for path in known if path.rpartition(".")[2] == last):
            groups = {path: path.replace(".", "/") for path in same}
            meant = [group if self.loader.get_group_options(group) else path for path, group in groups.items()]
            return f"did you mean {' or '.join(meant)}?"
        node = OmegaConf.select(config, parent) if parent else config
        if not isinstance(node, DictConfig):
            if close := difflib.get_close_matches(key, known, n=1):
                return f"did you mean {close[0]}?"
            while parent and not isinstance(node, DictConfig):
                parent = parent.rpartition(".")[0]
                node = OmegaConf.select(config, parent) if parent else config
            holds = ", ".join(map(str, node)) or "nothing"
            return f"{parent} holds {holds}" if parent else f"allowed are {holds}"
        allowed = sorted(self.parameters_at(config, parent)) or list(map(str, node))
        if close := difflib.get_close_matches(last, allowed, n=1):
            return f"did you mean {'.'.join(filter(None, (parent, close[0])))}?"
        return f"allowed are {', '.join(allowed)}" if allowed else f"{parent} holds nothing"

    def _group_suggestion(self, group: str) -> str:
        """What somebody who typed an unknown config group may have meant."""
        parent, _, last = group.rpartition("/")
        known = self.loader.list_groups(parent)
        close = difflib.get_close_matches(last, known, n=1)
        if close:
            return f"did you mean {parent}/{close[0]}?"
        return f"config groups of {parent} are {', '.join(known)}" if known else f"{parent} has no config groups"


@contextmanager
def composer(
    name: str = "train", config_dir: str | None = None, parameters_at: ParametersAt = no_parameters
) -> Iterator[Composer]:
    """Hydra made ready for conf/ and ``config_dir``; afterwards its global state is what it was.

    ``parameters_at`` says which keys may stand at a node, whether a YAML shows them or not.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", f" {config_dir}: no such folder")
    before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    import_plugins()
    groups = ConfigStore.instance().repo["hydra"]
    defaults = {group: dict(choices) for group, choices in groups.items() if isinstance(choices, dict)}
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name=name):
            yield Composer(name, config_dir, GlobalHydra.instance().config_loader(), parameters_at)
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = before
        groups.update(defaults)


def import_plugins() -> None:
    """Have Hydra import its plugins, once. Raises ConfigError for one that cannot be imported."""
    try:
        Plugins.instance()
    except Exception as error:  # whatever somebody else's plugin raises
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        named = [re.search(r"hydra_plugins/(\w+)", name) for name in frames]
        plugin = next((match[1] for match in named if match), "unknown")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f" {plugin} is installed and cannot be imported, which Hydra does not bear: uninstall it ({reason})"
        raise ConfigError("Hydra's plugin", message) from error


def prefer_own_choices() -> None:
    """Let the launchers and sweepers of conf/hydra/ stand for those that Hydra's plugins bring under the same names.

    Hydra would merge the two, and refuse what the plugin's does not have.
    """
    for path in conf_dir().glob("hydra/*/*.yaml"):
        ConfigStore.instance().repo["hydra"].get(path.parent.name, {}).pop(path.name, None)


def compose_config(
    name: str, overrides: Sequence[str], *, config_dir: str | None = None, parameters_at: ParametersAt = no_parameters
) -> DictConfig:
    """conf/<name>.yaml with overrides, as plain config. Raises ConfigError, in one line, for whatever Hydra refuses."""
    with composer(name, config_dir, parameters_at) as hydra:
        return without_hydra(hydra.compose(as_typed(overrides, sweep=False)))


def raise_failure(done: JobReturn) -> None:
    """Raise what a job has raised."""
    with contextlib.redirect_stderr(io.StringIO()):  # Hydra prints a line of its own
        _ = done.return_value


def source_key(raw: Any, key: str) -> str:
    """The key that a user can set: follows interpolations such as ``lr: ${..lr}`` in an unresolved config."""
    value = raw
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    reference = re.fullmatch(r"\$\{(\.*)([\w.]+)\}", value) if isinstance(value, str) else None
    if reference is None:
        return key
    up = len(reference[1])
    base = key.split(".")[:-up] if up else []
    return source_key(raw, ".".join([*base, reference[2]]))
