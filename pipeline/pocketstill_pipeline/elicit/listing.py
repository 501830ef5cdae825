"""The methods of elicitation with what a recipe may say of each: `pocketstill methods`."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketstill.errors import UserError

from .methods import METHODS


def list_methods(name: str | None = None) -> dict[str, Any]:
    """Shows all methods, or the settings of one, on stderr; returns them JSON-ready.

    Raises:
        UserError: there is no such method.
    """
    if name is None:
        found = {method: _said(method) for method in METHODS}
        table = Table("method", "what it does", title="methods of elicitation", title_justify="left")
        for method, said in found.items():
            table.add_row(method, said)
        Console(stderr=True).print(table)
        return {"methods": found}
    if name not in METHODS:
        nearest = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no method {name!r}; nearest: {nearest!r}; `pocketstill methods` lists them all")
    settings = METHODS[name].settings
    rows = {
        field: {
            "default": None if info.is_required() else _plain(info.get_default(call_default_factory=True)),
            "about": info.description or "",
        }
        for field, info in settings.model_fields.items()
        if field != "method"
    }
    table = Table("setting", "default", "about", title=f"{name}: {_said(name)}", title_justify="left")
    for field, row in rows.items():
        default = "required" if settings.model_fields[field].is_required() else str(row["default"])
        table.add_row(field, escape(default), escape(str(row["about"])))
    Console(stderr=True).print(table)
    return {"method": name, "about": _said(name), "settings": rows}


def _said(method: str) -> str:
    return (inspect.getdoc(METHODS[method].settings) or "").partition("\n\n")[0].replace("\n", " ")


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool, list, dict)) else str(value)
