"""What a config may name, for its slots to be filled: run folders are shared, and what they name would be called."""

import functools
import inspect
import site
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from hydra.utils import get_class, get_method, get_object

from wganlab.checks import import_target
from wganlab.schema import ConfigError, Factory, group_class, item_hint, options, signature_hints

#: Functions that return what their ``path`` names.
PASS_ON = (get_class, get_method, get_object)
#: Names of folders, for sysconfig, that hold Python's own modules and those that are installed.
LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")
#: Classes of values, which no node makes.
PLAIN = (str, int, float, bool, list, dict, tuple, type(None), object, Any)
#: Methods of protocols that a part may lack.
UNASKED = {"__init__", "_no_init_or_replace_init", "__subclasshook__", "__len__"}


class Transform:
    """Stands for torchvision's transforms, which have no class in common."""


def check_targets(hint: Any, node: Any, key: str) -> None:
    """Refuse whatever a config names that does not belong into its slot, nested nodes included, and call nothing.

    Run folders are shared: what their configs name would be called with their values. Raises ConfigError unless a
    target is code of the user's own, or a class of the kind that fills a slot with this annotation.
    """
    if isinstance(node, list):
        for i, value in enumerate(node):
            check_targets(item_hint(hint), value, f"{key}.{i}")
    if not isinstance(node, Mapping):
        return
    dotted = f"{key}." if key else ""
    if "_target_" in node:
        target = import_target(node, key)
        if target in PASS_ON:  # they return what they name, for wganlab to call
            target = import_target({"_target_": node.get("path")}, key)
        if not (is_own(target) or any(is_kind(kind_of(target), wanted) for wanted in kinds(hint))):
            names = " or ".join(sorted(wanted.__name__ for wanted in kinds(hint)))
            what = "a module" if inspect.ismodule(target) else f"no {names}"
            allowed = f"allowed are classes of that kind{', functions annotated to return one,' * callable(target)}"
            raise ConfigError(f"{dotted}_target_", f"={node['_target_']}: is {what}; {allowed} and code of your own")
        hints = signature_hints(target)
    else:
        group = group_class(hint)
        hints = signature_hints(group) if group else dict.fromkeys(node, item_hint(hint))
    for name, value in node.items():
        check_targets(hints.get(name, Any), value, f"{dotted}{name}")


def is_own(target: Any) -> bool:
    """Whether code is the user's: neither Python's nor installed, as wganlab itself is."""
    name = str(getattr(target, "__module__", None))
    file = getattr(sys.modules.get(name), "__file__", None)
    if name == "__main__" or file is None or name.partition(".")[0] == "wganlab":
        return name == "__main__" and callable(target)
    return callable(target) and not any(Path(file).is_relative_to(folder) for folder in installed())


@functools.cache
def installed() -> set[str]:
    """Folders of Python's own modules and of those that are installed."""
    paths = sysconfig.get_paths()
    return {*site.getsitepackages(), site.getusersitepackages(), *(paths[name] for name in LIBRARIES)}


def kind_of(target: Any) -> type | None:
    """What a call makes: an instance of a class, or what a function is annotated to return; None where unknown."""
    if not inspect.isclass(target):
        try:
            target = get_type_hints(target).get("return")
        except (NameError, TypeError, AttributeError):
            return None
    return target if inspect.isclass(target) else None


def kinds(hint: Any) -> list[type]:
    """The classes and protocols that may fill a slot with this annotation; where it says nothing, parts in general."""
    made = [
        kind_of(option.__call__) if Factory in getattr(option, "__mro__", ()) else option for option in options(hint)
    ]
    found = [kind for kind in made if inspect.isclass(kind) and kind not in PLAIN]
    if found:
        return found
    from pytorch_lightning import Callback
    from torch import nn, optim
    from torch.utils.data import Dataset

    return [nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, Callback, Dataset, Transform]


def is_kind(made: type | None, wanted: type) -> bool:
    """Whether a class is one of a kind, or has the methods of a protocol."""
    if made is None:
        return False
    if wanted is Transform:
        return made.__module__.startswith("torchvision.transforms")
    if not getattr(wanted, "_is_protocol", False):
        # Lightning is published under two names, whose classes are no subclasses of each other
        twin = f"{wanted.__module__.replace('pytorch_lightning', 'lightning.pytorch', 1)}.{wanted.__qualname__}"
        return issubclass(made, wanted) or any(f"{one.__module__}.{one.__qualname__}" == twin for one in made.__mro__)
    names = [name for name, value in vars(wanted).items() if inspect.isfunction(value) and name not in UNASKED]
    return all(any(name in vars(base) for base in made.__mro__) for name in names)
