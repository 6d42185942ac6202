"""What stands on the command line: overrides by Hydra's grammar, the jobs that they make, and the names of those."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from wganlab.refusals import one_line
from wganlab.schema import ConfigError

#: Longest name of a job's folder, in bytes; file systems allow 255.
MAX_FOLDER_NAME = 200


def folder_name(overrides: str) -> str:
    """A job's overrides as the name of its folder: / becomes a dot; a hash stands for whatever else is changed."""
    overrides = re.sub(r"(^|,)\+", r"\1", overrides)
    name = re.sub(r"[^\w.,=+\-\[\]]", "_", overrides.replace("/", "."), flags=re.ASCII)
    if name != overrides.replace("/", ".") or len(name) > MAX_FOLDER_NAME:
        name = f"{name[:MAX_FOLDER_NAME]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return name or "defaults"


def unless(value: Any, usual: Any = None) -> str:
    """What the name of a folder says of a setting: nothing of the usual one."""
    named = "-".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return "" if value == usual else f"_{named}"


def quote(text: str) -> str:
    """A text as a value of Hydra's grammar, in which backslashes are doubled before a quote alone."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def as_typed(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Overrides whose values can be any text: what Hydra's grammar cannot read is quoted, and so are Hydra's own keys.

    In a ``sweep``, commas separate values all the same; elsewhere they do not.
    """
    typed = []
    for override in overrides:
        key, equals, value = override.partition("=")
        swept = sweep and not key.lstrip("+").startswith("hydra.")
        if not equals or can_read(override, sweep=swept):
            typed.append(override)
            continue
        parts = value.split(",") if swept else [value]
        read = (part if can_read(f"{key}={part}", sweep=False) else quote(part) for part in parts)
        quoted = f"{key}={','.join(read)}"
        typed.append(quoted if can_read(quoted, sweep=True) else override)  # else it is the key that is wrong
    return typed


def can_read(override: str, *, sweep: bool) -> bool:
    """Whether Hydra's grammar takes an override for one, and where it is no ``sweep``, for that of a single value."""
    try:
        read = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return sweep or not read.is_choice_sweep()


def parse(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Overrides by Hydra's grammar. Raises ConfigError for one that it cannot read."""
    if nameless := [text for text in overrides if text.startswith("=")]:
        raise ConfigError(nameless[0], ": has no key before its =")
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except HydraException as error:
        raise one_line(error, overrides) from error


def split_sweep(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each job of a multirun, all combinations, the last key varying fastest."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(str(override.input_line), ": is no list of values; an interval needs a search (+search=)")
    return [list(job) for job in itertools.product(*values.values())]


def name_jobs_by_what_varies(overrides: Sequence[Override]) -> list[str]:
    """An override that keeps what all jobs of a multirun share out of the names of their folders.

    The arm of a study and its seed stay in, however few are run: a job has the same name in every sweep of the study.
    """
    keys = [override.key_or_group for override in overrides]
    named = {"arms", "seed"} if "arms" in keys else set()
    named |= {override.key_or_group for override in overrides if override.is_sweep_override()}
    if not named and not {"search", "hydra/sweeper"} & set(keys):  # a search names its own
        return []
    shared = [quote(key) for key in keys if key not in named]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(shared)}]"]
