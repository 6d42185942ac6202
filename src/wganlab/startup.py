"""What makes ``import pytorch_lightning`` quick, for every process that imports wganlab."""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class Torchmetrics(ModuleType):
    """torchmetrics, of which Lightning needs two base classes, imported whole when anything else of it is asked for.

    Its ``__init__`` imports all of its metrics, and for them scipy and torchvision: a fifth of Lightning's import.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "_logger":
            return logging.getLogger("torchmetrics")
        if name in ("Metric", "MetricCollection", "__version__"):
            import_module("torchmetrics.utilities")  # first: torchmetrics.metric and it import each other
            home = {"Metric": "metric", "MetricCollection": "collections", "__version__": "__about__"}[name]
            return getattr(import_module(f"torchmetrics.{home}"), name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
        return getattr(self, name)


def import_torchmetrics_in_parts() -> None:
    """Have torchmetrics' parts imported as they are needed, unless it is imported already."""
    spec = None if "torchmetrics" in sys.modules else find_spec("torchmetrics")
    if spec:
        sys.modules["torchmetrics"] = module = module_from_spec(spec)
        module.__class__ = Torchmetrics
