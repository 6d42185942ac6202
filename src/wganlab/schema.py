"""The constructor signature is the schema: config values are checked against the annotations of what they fill.

Types, ranges and defaults are declared where the value is used, as annotations that pydantic understands
(``PositiveInt``, ``Literal["batch", "layer"]``, ``Annotated[float, Field(ge=0, lt=1)]``), and nowhere else.
An annotation that is a :class:`Factory` stands for what is built later: wganlab gives its arguments, so that no config
can set them.
"""

import dataclasses
import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import SchemaError

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


@functools.cache
def adapter(hint: Any) -> TypeAdapter | None:
    """A strict validator of JSON values for an annotation; None where the annotation says nothing of them."""
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        return TypeAdapter(hint, config=config)
    except (PydanticUserError, PydanticSchemaGenerationError, SchemaError, TypeError, NameError):
        return None


def describe(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        options = dict.fromkeys(describe(option) for option in schema["anyOf"])
        return (", or " if any(option.startswith("a list") for option in options) else " or ").join(options)
    if schema.get("type") == "array":
        items = schema.get("prefixItems")
        if items:
            return "[" + ", ".join(describe(item) for item in items) + "]"
        return f"a list, each element {describe(schema.get('items', {}))}"
    names = {
        "integer": "an integer",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "object": "keys with values",
    }
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]}" for key, sign in limits.items() if key in schema)
    return f"{names.get(schema.get('type', ''), schema.get('type', 'something else'))} {bounds}".strip()


def check_value(hint: Any, value: Any, key: str) -> Any:
    """The value as the annotation wants it (an integer becomes a float). Raises ConfigError when it does not fit."""
    if value == {} and type(None) in get_args(hint):  # the choice of a YAML that holds nothing
        return value
    if group_class(hint) or factory_arguments(hint):  # filled by a node, not by a value
        if value is None and type(None) in get_args(hint):
            return value
        allowed = NODE
    elif (validator := adapter(hint)) is None:
        if item_hint(hint) is Any or isinstance(value, Mapping) or (value is None and type(None) in get_args(hint)):
            return value
        allowed = "keys with values"
    else:
        try:
            return validator.validate_json(json.dumps(value))
        except (ValidationError, TypeError):
            allowed = allowed_by(validator)
    if isinstance(value, bool | int | float | list) and "a text" in allowed:
        allowed += f"""; a text that looks otherwise is quoted twice: "{key}='...'\""""
    shown = json.dumps(value, default=str) if isinstance(value, list | dict | bool | None) else value
    raise ConfigError(key, f"={shown}: must be {allowed}") from None


#: What fills a slot for an object.
NODE = "a choice of the config group, or a node with _target_"


def allowed_by(validator: TypeAdapter) -> str:
    """What a validator lets pass, in words."""
    try:
        return describe(validator.json_schema())
    except PydanticUserError:  # an object, not a value
        return NODE


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


def check_call(
    target: Callable, arguments: Mapping[str, Any], prefix: str, *, partial: bool = False, given: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Check the keyword arguments of a call, and return those to be changed, by full key.

    These are values that become another type, and defaults of parameters that are left out. ``partial`` calls may leave
    required ones to be given later; those in ``given`` are passed by wganlab and set by nobody else.
    """
    try:
        allowed = {name: parameter for name, parameter in parameters(target).items() if name not in given}
    except ValueError as error:  # built-in types have no signature
        raise ConfigError(prefix + "_target_", f"={target}: cannot be configured ({error})") from None
    changes: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in allowed:
            raise ConfigError(prefix + name, f": unknown key; allowed are {', '.join(allowed)}")
        hint = allowed[name].hint
        of_parts = group_class(hint) or (item_hint(hint) is not Any and adapter(hint) is None)
        if is_node(value) or (isinstance(value, Mapping) and of_parts):
            changes |= check_node(hint, value, prefix + name)
        else:
            fitting = check_value(hint, value, prefix + name)
            if isinstance(fitting, float | tuple):
                changes[prefix + name] = list(fitting) if isinstance(fitting, tuple) else fitting
    for name, (_, required, default) in allowed.items():
        if name in arguments:
            continue
        if required and not partial:
            raise ConfigError(prefix + name, ": is missing and has no default")
        if not required and is_plain(default) and not target.__module__.startswith(FOREIGN):
            changes[prefix + name] = list(default) if isinstance(default, tuple) else default
    return changes


def is_plain(value: Any) -> bool:
    """Whether a default can be written into a config."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def check_node(hint: Any, node: Mapping[str, Any], key: str) -> dict[str, Any]:
    """:func:`check_call` for a node that fills a slot with this annotation, and for all nodes below it."""
    if "_target_" not in node:
        if group := group_class(hint):
            return check_call(group, node, f"{key}.")
        changes: dict[str, Any] = {}
        for name, value in node.items():
            if is_node(value):
                changes |= check_node(item_hint(hint), value, f"{key}.{name}")
            elif not factory_arguments(item_hint(hint)):  # beside which stands what they share
                check_value(item_hint(hint), value, f"{key}.{name}")
        return changes
    target = import_target(node, key)
    for name, wanted in HYDRA_KEYS.items():
        if name in node:
            check_value(wanted, node[name], f"{key}.{name}")
    arguments = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    partial, given = bool(node.get("_partial_")), factory_arguments(hint)
    if given and not partial:
        raise ConfigError(f"{key}._partial_", f": must be true, since wganlab adds {' and '.join(given)}")
    changes = check_call(target, arguments, f"{key}.", partial=partial, given=given)
    takes = inspect.signature(target).parameters
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in takes.values())
    if missing := [name for name in given if name not in takes and not takes_any]:
        what = f"={node['_target_']}: takes no {' and no '.join(missing)}, which wganlab gives"
        raise ConfigError(f"{key}._target_", what)
    return changes


def import_target(node: Mapping[str, Any], key: str) -> Any:
    """What a node names. Raises ConfigError where it cannot be imported."""
    try:
        return locate(node["_target_"])
    except (Exception, SystemExit) as error:  # an import runs whatever code the module holds
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{key}._target_", f"={node['_target_']}: cannot be imported ({reason})") from None


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
