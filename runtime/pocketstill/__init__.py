"""A distilled skill on a device, offline.

import pocketstill

model = pocketstill.load("device")
print(model.answer("Set the volume to 30.").answer)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pocketstill.errors import UserError

if TYPE_CHECKING:
    from pocketstill.grading import equal, extract
    from pocketstill.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "__version__", "equal", "extract", "load"]

_HOME = {"Model": "model", "load": "model", "equal": "grading", "extract": "grading"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import pocketstill` and the command's --help cost next to nothing.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
