"""Reading JSON Lines where every row is wanted: recorded replies, seed tasks, worked examples.

What is wrong with a line is said in one sentence, and ends it: fewer examples or seeds would quietly ask for something
else. Data to learn from is read by `reading`, which lists such rows and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError


def read_jsonl(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSONL file, blank lines skipped, other keys left in.

    `required` and `optional` name the keys whose values must be strings (and may be missing, for the latter).

    Raises:
        UserError: the file cannot be read, a line is no JSON object, or a field is missing or no string; it
            names the file and the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a JSONL file") from None
    rows = [
        _row(f"{path}, line {number}", line, required, optional)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise UserError(f"{path}: the file has no rows; it needs one JSON object a line")
    return rows


def _row(where: str, line: bytes, required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start}); mend or remove the line") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno}); mend or remove the line") from None
    except RecursionError:
        raise UserError(f"{where}: nests too deeply; mend or remove the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; mend or remove the line")
    for name in (*required, *optional):
        if name not in row:
            if name in required:
                raise UserError(f"{where}: the field {name!r} is missing; mend or remove the line")
        elif not isinstance(row[name], str):
            raise UserError(f"{where}: the field {name!r} is not a string; mend or remove the line")
    return row
