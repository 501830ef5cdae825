"""The Parquet tables that curation writes and training reads, with their column types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

_TEXT = datasets.Value("string")
_TURNS = [{"role": _TEXT, "content": _TEXT}]

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
        "candidates": [{"completion": _TEXT, "score": datasets.Value("float64")}],
        "top_logprobs": datasets.Value("binary"),
        "method": _TEXT,
        "tools": _TEXT,
        "weight": datasets.Value("float32"),
    }
)
REJECTED = datasets.Features(
    {
        name: [_TEXT] if name == "source" else _TEXT
        for name in (
            "id", "skill", "route", "split", "reason", "detail", "question", "rationale", "completion",
            "answer", "gold", "answer_kind", "source", "method",
        )
    }
)  # fmt: skip


def write_parquet(path: Path, rows: list[dict[str, Any]], features: Any) -> None:
    """Write rows (none, too) as one Parquet file."""
    datasets.disable_progress_bars()
    columns = {name: [row[name] for row in rows] for name in features}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """All rows of a Parquet file that `write_parquet` wrote."""
    # Not through datasets, which would leave a copy of them in the user's home.
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows
