"""Records out of one file: JSON Lines, JSON, CSV and Parquet, compressed or not, one record at a time."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pocketstill.errors import UserError

from .rows import Record, RowError, plain, split_named

COMPRESSED = (".gz", ".zst")
KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
# What an object at the top of a .json file may keep its rows under.
_LISTS = ("data", "rows", "items", "examples", "records", "observations", "runs")
_BATCH = 256
# A quoted CSV field that runs on for so many bytes has lost its closing quote.
_LONGEST = 16 << 20


def kind_of(path: Path) -> str | None:
    """What a file is read as, by its name; None for a name that says nothing known."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return KINDS.get(Path(name).suffix)


def read_file(path: Path, shown: str) -> Iterator[Record]:
    """The records of one file, from first to last; `shown` is how the file is called towards the user.

    Raises:
        UserError: the file cannot be read at all: missing, truncated, of an unknown kind, or no text.
    """
    kind = kind_of(path)
    if kind is None:
        endings = " ".join(KINDS)
        raise UserError(f"{shown}: {path.suffix or 'no ending'} is not a kind of data file; known: {endings}, also .gz")
    if kind == "parquet":
        yield from _read_parquet(path, shown)
        return
    with opened(path, shown) as file:
        if kind == "jsonl":
            yield from _read_lines(file, shown)
        elif kind == "csv":
            yield from _read_csv(file, shown, path.name.lower())
        else:
            yield from _read_json(file, shown)


@contextmanager
def opened(path: Path, shown: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed as its name asks, behind a byte order mark.

    Raises:
        UserError: it cannot be read, its compression is broken, or it is UTF-16.
    """
    try:
        with _decompressed(path) as file:
            start = file.peek(4)[:4]
            if start.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{shown}: is UTF-16 text; save it as UTF-8")
            if start.startswith(b"\xef\xbb\xbf"):
                file.read(3)
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{shown}: is broken or cut off ({error}); compress it again") from None
    except OSError as error:
        said = error.strerror or str(error).splitlines()[0]
        raise UserError(f"{shown}: cannot be read ({said}); give the path of a data file") from None


def _decompressed(path: Path) -> io.BufferedReader:
    if path.suffix.lower() == ".gz":
        # gzip leaves the file open when it is handed one, so it opens it itself.
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.suffix.lower() == ".zst":
        import pyarrow

        path.open("rb").close()
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def parse_object(line: bytes | str) -> dict[str, Any]:
    """The JSON object that a line is.

    Raises:
        RowError: it is none; the reason is given.
    """
    try:
        row = json.loads(line.decode("utf-8") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON ({error.msg}, column {error.colno})") from None
    except ValueError:
        raise RowError("not JSON (a number of too many digits)") from None
    except RecursionError:
        raise RowError("nests too deeply") from None
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    cleaned: dict[str, Any] = plain(row)
    return cleaned


def _record(where: str, line: bytes | str) -> Record:
    try:
        return Record(where, parse_object(line))
    except RowError as error:
        return Record(where, None, str(error))


def _read_lines(file: BinaryIO, shown: str) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        # A crash may leave a run of NULs behind a line.
        if text := line.strip(b" \t\r\n\x00"):
            yield _record(f"{shown}, line {number}", text)


def _read_json(file: BinaryIO, shown: str) -> Iterator[Record]:
    """A list of objects, an object that holds such lists, one object alone, or JSON Lines under another name."""
    raw = file.read()
    if not raw.strip():
        return
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        first = raw.lstrip().split(b"\n", 1)[0].strip()
        if first.startswith(b"{") and first.endswith(b"}"):
            yield from _read_lines(io.BytesIO(raw), shown)
            return
        said = f"{error.msg}, line {error.lineno}, column {error.colno}"
        raise UserError(f"{shown}: not JSON ({said}); mend it, or write one object a line") from None
    except (ValueError, RecursionError):
        raise UserError(f"{shown}: not JSON that can be read (it nests too deeply); write one object a line") from None
    for prefix, name, items in _lists_of(value):
        for number, item in enumerate(items, start=1):
            where = f"{shown}, {prefix}item {number}"
            try:
                if not isinstance(item, dict):
                    raise RowError("not a JSON object")
                yield Record(where, plain(item), split=split_named(name))
            except RowError as error:
                yield Record(where, None, str(error))


def _lists_of(value: Any) -> list[tuple[str, str, list[Any]]]:
    if isinstance(value, list):
        return [("", "", value)]
    if isinstance(value, dict):
        splits = [name for name, items in value.items() if split_named(name) and isinstance(items, list)]
        names = splits or [name for name in _LISTS if isinstance(value.get(name), list) and value[name]]
        # An object with more to it is a record of its own, such as a trace with its observations.
        if names and (splits or not {"input", "inputs", "messages", "trace"} & set(value)):
            return [(f"{name}, ", name, value[name]) for name in (names if splits else names[:1])]
    return [("", "", [value])]


def _read_parquet(path: Path, shown: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        source: Any = path
        if path.suffix.lower() in COMPRESSED:
            with opened(path, shown) as packed:
                source = pyarrow.BufferReader(packed.read())
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch_records(batch, shown, number)
                number += batch.num_rows
    except FileNotFoundError:
        raise UserError(f"{shown}: cannot be read (No such file or directory); give the path of a data file") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        said = str(error).splitlines()[0][:160]
        raise UserError(f"{shown}: is no whole Parquet file ({said}); write it again") from None


def batch_records(batch: Any, shown: str, before: int) -> Iterator[Record]:
    """The rows of an Arrow batch or table; `before` of them came earlier."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [None] * batch.num_rows
    for index, row in enumerate(rows):
        where = f"{shown}, row {before + index + 1}"
        try:
            yield Record(where, plain(batch.slice(index, 1).to_pylist()[0] if row is None else row))
        except UnicodeDecodeError:
            yield Record(where, None, "not UTF-8")
        except RowError as error:
            yield Record(where, None, str(error))


class _Lines:
    """The lines of a CSV file, with those since a record's start kept, to go back to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0
        self._bytes = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._again:
            line = self._again.popleft()
        else:
            raw = self._file.readline()
            if not raw:
                raise StopIteration
            # NULs are an error to csv before Python 3.11, and no text in any version.
            line = raw.decode("utf-8", "surrogateescape").replace("\x00", "")
        self.number += 1
        self.taken.append(line)
        self._bytes += len(line)
        if self._bytes > _LONGEST and len(self.taken) > 1:
            raise csv.Error("a quote that never closes")
        return line

    def start(self) -> int:
        """Here a record starts; gives the number of its first line."""
        self.taken.clear()
        self._bytes = 0
        return self.number + 1

    def go_back(self, lost: int) -> None:
        """To the start of the record that has been begun, or behind its first `lost` lines."""
        self.number -= len(self.taken) - lost
        self._again.extendleft(reversed(self.taken[lost:]))


def _read_csv(file: BinaryIO, shown: str, name: str) -> Iterator[Record]:
    """RFC 4180, with the delimiter that the header uses. A record that is broken costs its first line only."""
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    lines = _Lines(file)
    delimiter: str | None = "\t" if ".tsv" in name else None
    header: list[str] | None = None
    reader: Any = None
    while True:
        start = lines.start()
        where = f"{shown}, line {start}"
        if reader is None:
            if delimiter is None and (delimiter := _delimiter_of(lines)) is None:
                return
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise UserError(f"{where}: the header is broken ({error}); mend it") from None
            lines.go_back(1)
            reader = None
            yield Record(where, None, f"not CSV ({_csv_reason(str(error))})")
            continue
        # Spreadsheets end in rows of delimiters alone.
        if not any(map(str.strip, cells)):
            continue
        if header is None:
            header = _header(cells, where)
            continue
        yield _csv_record(where, header, cells)


def _delimiter_of(lines: _Lines) -> str | None:
    """The delimiter that the header line holds most of; None for a file without lines."""
    first = ""
    for first in lines:
        if first.strip():
            break
    if not first:
        return None
    lines.go_back(0)
    lines.start()
    return max((",", ";", "\t", "|"), key=re.sub('"[^"]*"', "", first).count)


def _csv_reason(said: str) -> str:
    return "a quote that never closes" if said == "unexpected end of data" else said


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if any("\udc80" <= sign <= "\udcff" for name in names for sign in name):
        raise UserError(f"{where}: the header is not UTF-8; save the file as UTF-8")
    if twice:
        raise UserError(f"{where}: the column {twice[0]!r} is there twice; give each a name of its own")
    return names


def _csv_record(where: str, header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        why = f"{len(cells)} fields, but the header has {len(header)}; a text with delimiters or line ends needs quotes"
        return Record(where, None, why)
    try:
        for cell in cells:
            cell.encode("utf-8")
    except UnicodeEncodeError:
        return Record(where, None, "not UTF-8")
    texts = (cell.replace("\r\n", "\n") for cell in cells)
    return Record(where, {name: text for name, text in zip(header, texts, strict=True) if name})
