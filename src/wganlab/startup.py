"""What makes ``import pytorch_lightning`` quick, for every process that imports wganlab before it.

Lightning imports torch's compiler for a class and a decorator, and torchmetrics for two base classes; together they
take longer than all else of it. Each is imported when anything else of it is asked for.
"""

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER, PLOTS = "torch._dynamo", "torchmetrics.utilities.plot"


def import_in_parts() -> None:
    """Have torch's compiler and torchmetrics imported as they are needed, unless they are imported already."""
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = compiler()
        sys.meta_path.insert(0, CompilerFinder())
    spec = None if "torchmetrics" in sys.modules else find_spec("torchmetrics")
    if spec:
        sys.modules["torchmetrics"] = module = module_from_spec(spec)
        module.__class__ = Torchmetrics


class StandIn(ModuleType):
    """Some names of a module, which is imported in its place when any other is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which the import system looks for
            raise AttributeError(name)
        return getattr(whole(self.__name__), name)


def whole(name: str) -> ModuleType:
    """A module itself, whatever stands in for it."""
    if is_stood_in_for(name):
        del sys.modules[name]
    return import_module(name)


def is_stood_in_for(name: str) -> bool:
    """Whether a module has not been needed yet."""
    return isinstance(sys.modules.get(name), StandIn)


def compiler() -> ModuleType:
    """What torch and Lightning ask for of torch's compiler where nothing is compiled.

    That is a class which has no instances before the compiler is imported, a decorator that keeps the compiler out of a
    function, a mark where it is to stop, and a cache to be cleared.
    """
    module: Any = StandIn(COMPILER)
    module.__spec__, module.__path__ = ModuleSpec(COMPILER, None, is_package=True), []
    module.OptimizedModule, module.disable = Compiled("OptimizedModule", (), {}), disable
    module.graph_break = lambda *_: None
    module.trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)
    return module


class Compiled(type):
    """The type of torch's class of compiled modules, until it is imported."""

    def __instancecheck__(cls, instance: object) -> bool:
        return not is_stood_in_for(COMPILER) and isinstance(instance, whole(COMPILER).OptimizedModule)


def disable(function: Callable, recursive: bool = True, **options: Any) -> Callable:
    """``torch.compiler.disable`` for as long as there is nothing to disable."""
    real = functools.cache(lambda: whole(COMPILER).disable(function, recursive, **options))
    if is_stood_in_for(COMPILER):  # torch would look for it anew in every step of an optimizer
        vars(sys.modules["torch"])["_dynamo"] = sys.modules[COMPILER]

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return (function if is_stood_in_for(COMPILER) else real())(*arguments, **named)

    return call


class CompilerFinder(MetaPathFinder):
    """Finds parts of torch's compiler that are imported by name: the whole comes first."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Where a part is, once the whole has been imported; None for what is not our concern."""
        if not (name.startswith(f"{COMPILER}.") and is_stood_in_for(COMPILER)):
            return None
        package = whole(COMPILER)
        return ModuleSpec(name, Imported()) if name in sys.modules else PathFinder.find_spec(name, package.__path__)


class Imported(Loader):
    """Gives a module that has been imported on the way to it, and leaves it as it is."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself."""
        module = sys.modules[spec.name]
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed; whoever asks where it comes from is to find its own spec."""
        module.__spec__ = self.own_spec


class Torchmetrics(ModuleType):
    """torchmetrics, of which Lightning needs two base classes, imported whole when anything else of it is asked for.

    Its ``__init__`` imports all of its metrics, and for them scipy and torchvision; its base classes import matplotlib.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "_logger":
            return logging.getLogger("torchmetrics")
        if name in ("Metric", "MetricCollection", "__version__"):
            sys.modules.setdefault(PLOTS, plots())
            import_module("torchmetrics.utilities")  # first: torchmetrics.metric and it import each other
            home = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}[name]
            return getattr(import_module(f"torchmetrics.{home}"), name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
        return getattr(self, name)


def plots() -> ModuleType:
    """What the base classes of metrics ask for of torchmetrics' plots: two annotations and a function."""
    module: Any = StandIn(PLOTS)
    module._AX_TYPE = module._PLOT_OUT_TYPE = object
    module.plot_single_or_multi_val = lambda *values, **options: whole(PLOTS).plot_single_or_multi_val(
        *values, **options
    )
    return module
