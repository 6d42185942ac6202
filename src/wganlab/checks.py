"""Checks of config values against what :mod:`wganlab.schema` reads from signatures, in words where they fail."""

import difflib
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import SchemaError

from wganlab.schema import (
    FOREIGN,
    HYDRA_KEYS,
    ConfigError,
    factory_arguments,
    group_class,
    is_node,
    item_hint,
    locate,
    parameters,
)

#: What fills a slot for an object.
NODE = "a choice of the config group, or a node with _target_"


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
    if isinstance(value, str) and "a text" not in allowed and reads_otherwise(value):
        shown = f"'{value}' (a text)"
    raise ConfigError(key, f"={shown}: must be {allowed}") from None


def reads_otherwise(text: str) -> bool:
    """Whether a text without quotes would be a number, a truth value or nothing."""
    try:
        return not isinstance(json.loads(text), str)
    except ValueError:
        return False


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
        reason = misnamed(node["_target_"]) or " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{key}._target_", f"={node['_target_']}: cannot be imported ({reason})") from None


def misnamed(target: str) -> str | None:
    """What an imported module has in the place of a name that it has not; None where the name is not what is wrong."""
    module, _, name = target.rpartition(".")
    names = dir(sys.modules.get(module, object))
    if module not in sys.modules or {name, "__getattr__"} & {*names}:  # which makes names when they are asked for
        return None
    close = difflib.get_close_matches(name, names, 1)
    return f"{module} has no {name}" + (f"; did you mean {close[0]}?" if close else "")


def is_plain(value: Any) -> bool:
    """Whether a default can be written into a config."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


@functools.cache
def adapter(hint: Any) -> TypeAdapter | None:
    """A strict validator of JSON values for an annotation; None where the annotation says nothing of them."""
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        return TypeAdapter(hint, config=config)
    except (PydanticUserError, PydanticSchemaGenerationError, SchemaError, TypeError, NameError):
        return None


def allowed_by(validator: TypeAdapter) -> str:
    """What a validator lets pass, in words."""
    try:
        return describe(validator.json_schema())
    except PydanticUserError:  # an object, not a value
        return NODE


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
