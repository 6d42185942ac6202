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


def check_value(hint: Any, value: Any, key: str) -> None:
    """Raises ConfigError when a plain value does not fit the annotation."""
    validator = adapter(hint)
    if validator is None:
        return
    try:
        validator.validate_json(json.dumps(value))
    except ValidationError:
        try:
            allowed = describe(validator.json_schema())
        except PydanticUserError:  # an object, not a value
            allowed = "a choice of the config group, or a node with _target_"
        shown = json.dumps(value) if isinstance(value, list | bool | None) else value
        raise ConfigError(key, f"={shown}: must be {allowed}") from None


def is_node(value: Any) -> bool:
    """Whether a value is built from parts of its own rather than passed as it is."""
    return isinstance(value, dict) and ("_target_" in value or any(is_node(v) for v in value.values()))


def check_call(target: Callable, arguments: Mapping[str, Any], prefix: str, *, partial: bool = False) -> None:
    """Check the keyword arguments of a call; ``partial`` calls may leave some to be given later."""
    allowed = parameters(target)
    for name, value in arguments.items():
        if name not in allowed:
            raise ConfigError(prefix + name, f": unknown key; allowed are {', '.join(allowed)}")
        if not is_node(value):
            check_value(allowed[name][0], value, prefix + name)
    missing = [name for name, (_, required) in allowed.items() if required and name not in arguments]
    if missing and not partial:
        raise ConfigError(prefix + missing[0], ": is missing and has no default")


def check_targets(node: Any, prefix: str = "") -> None:
    """Check every ``_target_`` below a node of plain containers, and the values it will be called with."""
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        try:
            target = locate(node["_target_"])
        except Exception as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ConfigError(f"{prefix}_target_", f"={node['_target_']}: cannot be imported ({reason})") from None
        arguments = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
        check_call(target, arguments, prefix, partial=node.get("_partial_", False))
    for key, value in node.items():
        check_targets(value, f"{prefix}{key}.")


def check_shared_values(node: Mapping[str, Any], prefix: str, *, calls: Iterable[str]) -> None:
    """Check a namespace that holds the ``calls`` and, beside them, plain values that the calls share."""
    for name in calls:
        if not is_node(node.get(name)):
            raise ConfigError(prefix + name, f"={node.get(name)}: must be a node with _target_")
    known = {name for call in calls for name in parameters(locate(node[call]["_target_"]))}
    for key in node.keys() - known - set(calls):
        raise ConfigError(prefix + key, f": unknown key; allowed are {', '.join(sorted(known))}")


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below a node that is not itself a mapping."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
