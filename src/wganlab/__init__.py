"""wganlab trains GANs that differ in exactly one declared thing, and says whether the difference is real.

In a notebook: ``run = wganlab.train("loss=wgan_gp steps=500")``, ``run = wganlab.load_run(PATH)``; see
:mod:`wganlab.notebook`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wganlab.startup import import_in_parts

__version__ = "0.1.0"
__all__ = ["LoadedExport", "LoadedRun", "__version__", "load_export", "load_run", "train"]

import_in_parts()

if TYPE_CHECKING:
    from wganlab.exported import LoadedExport, load_export
    from wganlab.notebook import LoadedRun, load_run, train
else:

    def __getattr__(name: str) -> Any:
        """What takes seconds to import is imported when it is asked for."""
        if name in __all__:
            return getattr(import_module(f"wganlab.{'exported' if 'xport' in name else 'notebook'}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
