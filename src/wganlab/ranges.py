"""Random search: ranges that stand in a config in the place of numbers, of which every trial draws its own.

``loss.optimizer.lr=${log_uniform:1e-5,1e-2} trial=3`` is one run of it, and ``trial=range(20)`` twenty, as in Lucic et
al. 2018 (arXiv 1711.10337). A draw depends on the number of the trial and on the key alone, so that it can be made
again.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf

from wganlab.schema import ConfigError, leaves

#: How near to an end of its range a value is at its edge.
EDGE = 0.1


def uniform(position: float, low: float, high: float) -> float:
    """Between two numbers."""
    return low + position * (high - low)


def log_uniform(position: float, low: float, high: float) -> float:
    """Between two positive numbers, on a logarithmic scale."""
    return math.exp(uniform(position, math.log(low), math.log(high)))


def choice(position: float, *values: Any) -> Any:
    """One of some values, each as likely."""
    return values[int(position * len(values))]


RANGES: dict[str, Callable[..., Any]] = {range_.__name__: range_ for range_ in (uniform, log_uniform, choice)}


def position(trial: int, key: str) -> float:
    """Where in the range at a key a trial draws its value, uniform in [0, 1)."""
    digest = hashlib.blake2b(f"{trial} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def resolver(range_: Callable[..., Any]) -> Callable[..., Any]:
    """A resolver of OmegaConf that draws from a range."""

    def draw(*arguments: Any, _root_: Any, _node_: Any) -> Any:
        key = _node_._get_full_key(None)
        if _root_.get("trial") is None:
            raise ConfigError("trial", f"=null: {key} is a range, of which trial=0, 1, 2 ... draw their values")
        try:
            value = range_(position(_root_.trial, key), *arguments)
        except (TypeError, ValueError, IndexError) as error:
            given = f"{range_.__name__}:{','.join(map(str, arguments))}"
            raise ConfigError(
                key, f"=${{{given}}}: is no range ({error}); uniform and log_uniform take two numbers"
            ) from error
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return draw


def drawn(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of a run's config, drawn where it is a range; None where there is none."""
    return OmegaConf.select(OmegaConf.create(dict(config)), key)


def register() -> None:
    """Have OmegaConf know the ranges."""
    for name, range_ in RANGES.items():
        OmegaConf.register_new_resolver(name, resolver(range_), replace=True)


def ranges_in(config: Mapping[str, Any]) -> dict[str, str]:
    """Key -> range, as written, of every range in a config or a part of one."""
    pattern = re.compile(rf"\$\{{({'|'.join(RANGES)}):(.*)\}}")
    return {key: text for key, text in leaves(config) if isinstance(text, str) and pattern.fullmatch(text)}


def is_at_edge(key: str, text: str, trial: int) -> bool:
    """Whether a trial draws a value near an end of the range at a key; a choice has no ends."""
    inside = EDGE <= position(trial, key) <= 1 - EDGE
    return not (inside or text.startswith("${choice"))
