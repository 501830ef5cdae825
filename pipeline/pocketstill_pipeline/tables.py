"""The Parquet tables that curation writes and training reads, with their column types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

_TEXT = datasets.Value("string")
_NUMBER = datasets.Value("float64")
# As in the OpenAI protocol; `tool_calls` is JSON text, and what a turn does not have is null.
_TURNS = [dict.fromkeys(("role", "content", "tool_calls", "tool_call_id", "name"), _TEXT)]
_BATCH = 1000

# example.Example, column for column.
EXAMPLES = datasets.Features(
    {
        "id": _TEXT,
        "skill": _TEXT,
        "route": _TEXT,
        "messages": _TURNS,
        "rationale": _TEXT,
        "answer": _TEXT,
        "answer_kind": _TEXT,
        "gold": _TEXT,
        "split": _TEXT,
        "source": [_TEXT],
        "tags": [_TEXT],
        "demonstrations": _TURNS,
        "candidates": [{"completion": _TEXT, "score": _NUMBER}],
        "top_logprobs": datasets.Value("binary"),
        "method": _TEXT,
        "tools": _TEXT,
        "weight": datasets.Value("float32"),
        "scores": [{"name": _TEXT, "value": _NUMBER}],
    }
)
REJECTED = datasets.Features(
    {
        **{
            name: [_TEXT] if name == "source" else _TEXT
            for name in (
                "id", "skill", "route", "split", "reason", "detail", "question", "rationale", "completion",
                "answer", "gold", "answer_kind", "source", "method",
            )
        },
        "score": _NUMBER,
    }
)  # fmt: skip


class Table:
    """A Parquet file that is written row by row, some at a time, so that memory does not grow with it."""

    def __init__(self, path: Path, features: Any) -> None:
        self._schema = features.arrow_schema
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(_stored(row))
        self.count += 1
        if len(self._rows) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], features: Any) -> None:
    """Write rows (none, too) as one Parquet file."""
    with Table(path, features) as table:
        for row in rows:
            table.add(row)


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """All rows of a Parquet file that `write_parquet` wrote, turns and scores as they were."""
    # Not through datasets, which would leave a copy of them in the user's home.
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return [_restored(row) for row in rows]


def _stored(row: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {
        name: [_turn(turn) for turn in row[name]] for name in ("messages", "demonstrations") if name in row
    }
    if "scores" in row:
        changed["scores"] = [{"name": name, "value": value} for name, value in row["scores"].items()]
    return row | changed


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    calls = turn.get("tool_calls")
    return turn if not calls else turn | {"tool_calls": json.dumps(calls, ensure_ascii=False)}


def _restored(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("messages", "demonstrations"):
        if name in row:
            row[name] = [_told(turn) for turn in row[name]]
    if "scores" in row:
        row["scores"] = {score["name"]: score["value"] for score in row["scores"] or []}
    return row


def _told(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn without what it does not have; its content stays, since templates look for it."""
    kept = {name: value for name, value in turn.items() if value is not None or name in ("role", "content")}
    return kept | ({"tool_calls": json.loads(kept["tool_calls"])} if "tool_calls" in kept else {})
