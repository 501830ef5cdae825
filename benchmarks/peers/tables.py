"""The tables of bench_export.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def conversions(rows: Sequence[Mapping[str, Any]], ceiling: float) -> str:
    lines = [
        "| ours | by hand | ours, s | by hand, s | time ratio | ours, MiB | by hand, MiB | memory ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [_ratio(row.get(f"{what}_ratio"), ceiling) for what in ("time", "memory")]
        cells = [row["ours"], row["peer"] or "-", _value(row["ours_s"], 1), _value(row.get("peer_s"), 1), ratios[0]]
        cells += [_value(row["ours_mib"], 0), _value(row.get("peer_mib"), 0), ratios[1]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def decoding(rows: Sequence[Mapping[str, Any]], tokens: int) -> str:
    lines = [
        "| system | threads | file, MiB | decode, tokens/s | first tokens as transformers' |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["threads"], -row["tok_s"]["median"])):
        cells = [row["system"], str(row["threads"]), f"{row['file_mib']:,.1f}", _value(row["tok_s"], 1)]
        lines.append(f"| {' | '.join(cells)} | {row['same_tokens']} of {tokens} |")
    return "\n".join(lines)


def _value(figure: Mapping[str, float] | None, digits: int) -> str:
    """Median and quartiles."""
    if figure is None:
        return "-"
    low, middle, high = (f"{figure[key]:,.{digits}f}" for key in ("q1", "median", "q3"))
    return f"{middle} ({low} to {high})"


def _ratio(figure: Mapping[str, float] | None, ceiling: float) -> str:
    if figure is None:
        return "-"
    return _value(figure, 2) + ("" if figure["median"] <= ceiling else " **over**")
