"""Reading a source: its form is told from its first rows, then row after row is read into that form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from pocketstill.errors import UserError

from . import traces
from .forms import convert
from .layout import Layout, find_layout
from .rows import BadRow, Data, DataRow, Record, RowError, StepError
from .sources import records

# So many rows are looked at for the form.
_LOOKED_AT = 32
_NESTED = ("langfuse", "langsmith")


def read_data(
    source: str, *, form: str = "auto", columns: Mapping[str, str] | None = None, most_bad: int = 100
) -> Data:
    """All rows of a source in one of the forms of docs/data.md.

    Args:
        source: a file (.jsonl .json .csv .tsv .parquet, also .gz or .zst), a folder of such files or one that
            `save_to_disk` wrote, or `hf:owner/name`, `hf:owner/name@config:split`.
        form: the name of a form, or "auto": then the columns of the first rows say it.
        columns: field to column, for columns of other names; `a.b` is the field b of the object in a.
        most_bad: so many rows may be unusable; they are listed, and the rest is read.

    Raises:
        UserError: the source cannot be read, fits no form, has more than `most_bad` unusable rows or no other.
    """
    reader = _Reader(source, form, columns or {}, most_bad)
    rows = [found for found in reader if isinstance(found, DataRow)]
    return Data(rows, reader.bad, reader.layout.form, dict(reader.skipped))


def iter_data(
    source: str, *, form: str = "auto", columns: Mapping[str, str] | None = None, most_bad: int = 100
) -> Iterator[DataRow | BadRow]:
    """As `read_data`, row after row, holding none of them.

    What cannot be read in parts is held: a .json file, a compressed Parquet file, the requests of a Batch API.

    Raises:
        UserError: as `read_data`, when it comes to it.
    """
    return iter(_Reader(source, form, columns or {}, most_bad))


class _Reader:
    """One pass over a source."""

    def __init__(self, source: str, form: str, columns: Mapping[str, str], most_bad: int) -> None:
        self._source, self._most_bad = source, most_bad
        self.bad: list[BadRow] = []
        self.skipped: Counter[str] = Counter()
        stream = records(source)
        first: list[Record] = []
        usable = 0
        for record in stream:
            first.append(record)
            usable += record.row is not None
            if usable == _LOOKED_AT or len(first) - usable > most_bad:
                break
        if not first:
            raise UserError(f"{source}: the file has no rows; it needs one JSON object a line, or a header and rows")
        if not usable:
            self.bad = [BadRow(record.where, record.why) for record in first]
            many = len(first) > most_bad
            raise self._too_bad(f"more than {most_bad} rows" if many else f"none of its {len(first)} rows")
        looked_at = [record.row for record in first if record.row is not None]
        self.layout = find_layout(looked_at, source, form, columns)
        self._records: Iterator[Record] = chain(first, stream)

    def __iter__(self) -> Iterator[DataRow | BadRow]:
        good = 0
        for record in self._prepared():
            try:
                rows = convert(record, self.layout)
            except StepError as step:
                self.skipped[str(step)] += 1
            except RowError as error:
                bad = BadRow(record.where, " ".join(str(error).split())[:300])
                self.bad.append(bad)
                if len(self.bad) > self._most_bad:
                    raise self._too_bad(f"more than {self._most_bad} rows") from None
                yield bad
            else:
                good += len(rows)
                yield from rows
        if not good and self.bad:
            raise self._too_bad(f"none of its {len(self.bad)} rows")
        if not good:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.skipped.items())
            raise UserError(f"{self._source}: holds no call of a model ({kinds}); export those, with input and output")

    def _too_bad(self, how: str) -> UserError:
        how += " can be used" if how.startswith("none") else " cannot be used"
        shown = "; ".join(f"{row.where}: {row.why}" for row in self.bad[:3])
        more = " ..." if len(self.bad) > 3 else ""
        return UserError(f"{self._source}: {how} as {self._form()}: {shown}{more}; mend or remove the lines")

    def _form(self) -> str:
        return f"form {self.layout.form!r}" if hasattr(self, "layout") else "data"

    def _prepared(self) -> Iterator[Record]:
        if self.layout.form in _NESTED:
            yield from _apart(self._records)
        elif self.layout.form == "batch":
            yield from _joined(self._records, self.layout)
        else:
            yield from self._records


def _apart(found: Iterator[Record]) -> Iterator[Record]:
    """The calls inside of traces, each a record of its own."""
    for record in found:
        if record.row is None:
            yield record
            continue
        inside = traces.observations(record.row)
        for number, row in enumerate(inside, start=1):
            where = record.where if len(inside) == 1 else f"{record.where}, call {number}"
            yield Record(where, row, split=record.split)


def _joined(found: Iterator[Record], layout: Layout) -> Iterator[Record]:
    """The requests of a batch in their order, each with its answer, whichever file holds which."""
    requests: dict[str, Record] = {}
    answers: dict[str, Record] = {}
    for record in found:
        row = record.row
        identity = None if row is None else row.get("custom_id")
        if row is None or not isinstance(identity, str):
            yield record if row is None else Record(record.where, None, "the field 'custom_id' is missing")
        elif row.get("body") is not None:
            if identity in requests:
                yield Record(record.where, None, f"the custom_id {identity!r} is there twice")
            else:
                requests[identity] = record
        # A failure that was asked again is answered by the later line.
        elif identity not in answers or not (answers[identity].row or {}).get("response"):
            answers[identity] = record
    for identity, record in requests.items():
        answer = answers.pop(identity, None)
        row = {**((answer and answer.row) or {}), **(record.row or {})}
        yield Record(record.where, row, split=record.split)
    yield from answers.values()


def describe(data: Data) -> dict[str, Any]:
    """A short summary for people: form, counts, splits, and mean lengths in characters."""
    rows = data.rows
    splits = Counter(row.split or "none" for row in rows)
    lengths = {
        "messages": [sum(len(turn["content"]) for turn in row.messages) for row in rows],
        "gold": [len(row.gold) for row in rows if row.gold is not None],
        "completion": [len(row.completion) for row in rows if row.completion is not None],
        "rationale": [len(row.rationale) for row in rows if row.rationale is not None],
        "context": [len(row.context) for row in rows if row.context is not None],
    }
    return {
        "form": data.form,
        "rows": len(rows),
        "bad": len(data.bad),
        "skipped": dict(data.skipped),
        "splits": dict(splits),
        "with": {name: len(found) for name, found in lengths.items() if found and name != "messages"},
        "tools": sum(bool(row.tools) for row in rows),
        "turns": round(sum(len(row.messages) for row in rows) / max(1, len(rows)), 2),
        "mean_characters": {name: round(sum(found) / len(found), 1) for name, found in lengths.items() if found},
        "first_bad": [f"{row.where}: {row.why}" for row in data.bad[:3]],
    }
