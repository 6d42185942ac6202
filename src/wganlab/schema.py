"""The constructor signature is the schema: checks plain config values against the annotations of what they fill.

Types and ranges are declared where the value is used, as annotations that pydantic understands
(``PositiveInt``, ``Literal["batch", "layer"]``, ``Annotated[float, Field(ge=0, lt=1)]``), and nowhere else.
"""

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, get_type_hints

from hydra._internal.utils import _locate
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import SchemaError

HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
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


class ConfigError(Exception):
    """A setting is wrong. The message is one line: the key, its value, and what is allowed."""

    exit_code = 2

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key, self.message = key, message

    def __str__(self) -> str:
        return " ".join(f"{self.key}{self.message}".split())


#: What a dotted ``_target_`` names. Hydra's public twin, get_object, writes to the log before it raises.
locate = functools.cache(_locate)


@functools.cache
def parameters(target: Callable) -> dict[str, tuple[Any, bool]]:
    """Keyword parameters of a callable: name -> (annotation, is required)."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        hints = {}
    if any(base.__module__.startswith("torch.optim") for base in getattr(target, "__mro__", ())):
        hints |= OPTIMIZER_HINTS
    return {
        name: (hints.get(name, Any), parameter.default is parameter.empty)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


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
        return " or ".join(dict.fromkeys(describe(option) for option in schema["anyOf"]))
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
    validator = adapter(hint)
    if validator is None:
        return value
    try:
        return validator.validate_json(json.dumps(value))
    except (ValidationError, TypeError):
        try:
            allowed = describe(validator.json_schema())
        except PydanticUserError:  # an object, not a value
            allowed = "a choice of the config group, or a node with _target_"
        shown = json.dumps(value, default=str) if isinstance(value, list | dict | bool | None) else value
        raise ConfigError(key, f"={shown}: must be {allowed}") from None


def is_node(value: Any) -> bool:
    """Whether a value is built from parts of its own rather than passed as it is."""
    return isinstance(value, dict) and ("_target_" in value or any(is_node(v) for v in value.values()))


def check_call(
    target: Callable, arguments: Mapping[str, Any], prefix: str, *, partial: bool = False, given: Iterable[str] = ()
) -> dict[str, Any]:
    """Check the keyword arguments of a call, and return those that become another type, by full key.

    ``partial`` calls may leave some to be given later; those in ``given`` are given by wganlab and by nobody else.
    """
    try:
        allowed = {name: hint for name, hint in parameters(target).items() if name not in given}
    except ValueError as error:  # built-in types have no signature
        raise ConfigError(prefix + "_target_", f"={target}: cannot be configured ({error})") from None
    converted = {}
    for name, value in arguments.items():
        if name not in allowed:
            raise ConfigError(prefix + name, f": unknown key; allowed are {', '.join(allowed)}")
        if not is_node(value):
            fitting = check_value(allowed[name][0], value, prefix + name)
            if isinstance(fitting, float | tuple):
                converted[prefix + name] = list(fitting) if isinstance(fitting, tuple) else fitting
    missing = [name for name, (_, required) in allowed.items() if required and name not in arguments]
    if missing and not partial:
        raise ConfigError(prefix + missing[0], ": is missing and has no default")
    return converted


def check_targets(node: Any, given: Mapping[str, Iterable[str]], prefix: str = "") -> dict[str, Any]:
    """:func:`check_call` for every ``_target_`` below a node of plain containers; ``given`` is by key of the node."""
    converted: dict[str, Any] = {}
    if not isinstance(node, dict):
        return converted
    if "_target_" in node:
        try:
            target = locate(node["_target_"])
        except (Exception, SystemExit) as error:  # an import runs whatever code the module holds
            reason = " ".join(str(error.__cause__ or error).split())
            raise ConfigError(f"{prefix}_target_", f"={node['_target_']}: cannot be imported ({reason})") from None
        arguments = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
        partial = node.get("_partial_", False)
        converted |= check_call(target, arguments, prefix, partial=partial, given=given.get(prefix.rstrip("."), ()))
    for key, value in node.items():
        converted |= check_targets(value, given, f"{prefix}{key}.")
    return converted


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below a node that is not itself a mapping."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
