"""The constructor signature is the schema: config values are checked against the annotations of what they fill.

Types, ranges and defaults are declared where the value is used, as annotations that pydantic understands
(``PositiveInt``, ``Literal["batch", "layer"]``, ``Annotated[float, Field(ge=0, lt=1)]``), and nowhere else.
An annotation that is a :class:`Factory` stands for what is built later: wganlab gives its arguments, so that no config
can set them.
"""

import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from pydantic import Field, NonNegativeFloat, PositiveFloat

#: Hydra's own keys in a node, and what they may be.
HYDRA_KEYS: dict[str, Any] = {
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list[Any],
}
UnitInterval = Annotated[float, Field(ge=0, lt=1)]
#: torch annotates its optimizers without ranges, and lets a learning rate of zero pass.
OPTIMIZER_HINTS = {
    "lr": PositiveFloat,
    "betas": tuple[UnitInterval, UnitInterval],
    "alpha": UnitInterval,
    "momentum": UnitInterval,
    "eps": PositiveFloat,
    "weight_decay": NonNegativeFloat,
}
#: Packages whose defaults differ between releases: a run does not record them.
FOREIGN = ("torch", "pytorch_lightning", "lightning")


class ConfigError(Exception):
    """A setting is wrong. The message is one line: the key, its value, and what is allowed."""

    exit_code = 2

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key, self.message = key, message

    def __str__(self) -> str:
        return " ".join(f"{self.key}{self.message}".split())


class InvalidValueError(ValueError):
    """A part refuses the value of one of its parameters; ``allowed`` says what it takes, or what is wrong.

    Raise it in a constructor: the command prints one line that names the config key. Any other exception of a part is
    taken for a bug, and keeps its traceback.
    """

    def __init__(self, parameter: str, value: Any, allowed: str) -> None:
        super().__init__(parameter, value, allowed)
        self.parameter, self.value, self.allowed = parameter, value, allowed

    def __str__(self) -> str:
        return f"{self.parameter}={self.value}: {self.allowed}"


T = TypeVar("T", bound=Callable)


class Factory(Protocol):
    """Marks a protocol whose ``__call__`` wganlab makes with arguments of its own, which no config can set."""


class Parameter(NamedTuple):
    """One keyword parameter of a callable."""

    hint: Any
    required: bool
    default: Any


@functools.cache
def locate(path: str) -> Any:
    """The object that a dotted ``_target_`` names. Raises whatever its import raises."""
    logger = logging.getLogger("hydra.utils")  # it logs the error that it raises
    before, logger.disabled = logger.disabled, True
    try:
        return get_object(path)
    finally:
        logger.disabled = before


@functools.cache
def parameters(target: Callable) -> dict[str, Parameter]:
    """Keyword parameters of a callable, by name."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        hints = {}
    if any(base.__module__.startswith("torch.optim") for base in getattr(target, "__mro__", ())):
        hints |= OPTIMIZER_HINTS
    return {
        name: Parameter(hints.get(name, Any), parameter.default is parameter.empty, parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self"
    }


def extends(base: type) -> Callable[[T], T]:
    """Decorator: ``**options`` of a class or a function are the keyword parameters of ``base``, which it passes on.

    Defaults of a base of FOREIGN are none that a config could record.
    """

    def extend(target: T) -> T:
        own, inherited = inspect.signature(target).parameters, inspect.signature(base).parameters
        merged = {name: one for name, one in own.items() if one.kind != one.VAR_KEYWORD}
        foreign = base.__module__.startswith(FOREIGN)
        merged |= {
            name: one.replace(default=object()) if foreign else one
            for name, one in inherited.items()
            if name not in merged
        }
        target.__signature__ = inspect.Signature([*merged.values()])  # type: ignore[attr-defined]
        if not inspect.isclass(target):
            return target
        hints = get_type_hints(base.__init__, include_extras=True)  # type: ignore[misc]
        target.__init__.__annotations__ = hints | target.__init__.__annotations__
        return target

    return extend


def is_node(value: Any) -> bool:
    """Whether a value is built from parts of its own rather than passed as it is."""
    return isinstance(value, dict) and ("_target_" in value or any(is_node(v) for v in value.values()))


def options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation such as ``Factory | None``."""
    return (hint, *get_args(hint)) if get_origin(hint) is not Mapping else (hint,)


def factory_arguments(hint: Any) -> tuple[str, ...]:
    """Arguments that wganlab passes to what fills a slot: those of the factory protocol that annotates it."""
    for option in options(hint):
        if Factory in getattr(option, "__mro__", ()):
            return tuple(parameters(option.__call__))
    return ()


def group_class(hint: Any) -> Any:
    """The dataclass whose fields are the keys of a config group, where an annotation names one."""
    return next((o for o in options(hint) if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def item_hint(hint: Any) -> Any:
    """The annotation of the values of a mapping."""
    for option in options(hint):
        if isinstance(get_origin(option), type) and issubclass(get_origin(option), Mapping):
            return get_args(option)[1]
    return Any


def signature_hints(target: Any) -> dict[str, Any]:
    """Annotations of the parameters of a callable; none of one that has no signature."""
    try:
        return {name: parameter.hint for name, parameter in parameters(target).items()}
    except (ValueError, TypeError):
        return {}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below a node that is not itself a mapping."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
