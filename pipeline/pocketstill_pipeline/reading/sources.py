"""What a source is, a file, a folder of files or a data set of the hub, and its records one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pocketstill.errors import UserError
from pocketstill_pipeline.example import Split

from .files import KINDS, kind_of, read_file
from .hub import PREFIX, is_saved, read_hub, read_saved
from .rows import Record, split_within

# What lies beside data and is none.
_BESIDE = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "manifest.json", "stats.json")


def records(source: str) -> Iterator[Record]:
    """The records of a source, file after file by name; the files are read as they are come to.

    Raises:
        UserError: the source is not there, holds no data, or a file of it cannot be read.
    """
    if source.startswith(PREFIX):
        yield from read_hub(source)
        return
    path = Path(source)
    if not path.is_dir():
        yield from read_file(path, source)
    elif is_saved(path):
        yield from read_saved(path, source)
    else:
        files = files_in(path, lambda file: kind_of(file) is not None and file.name not in _BESIDE)
        if not files:
            raise UserError(f"{source}: the folder holds no data file; known endings: {' '.join(KINDS)}, also .gz")
        for file in files:
            side = split_of_file(file.relative_to(path))
            for record in read_file(file, str(file)):
                yield record if record.split or not side else Record(record.where, record.row, record.why, side)


def files_in(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """The files of a folder and the folders in it that `wanted(path)` is true of, hidden ones left out, by name."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and wanted(path):
            found.append(path)
    return found


def split_of_file(name: Path) -> Split | None:
    """The side that a file's path inside its folder says: `test.jsonl`, `train-00000-of-00001.parquet`, `dev/a.csv`.

    None where it says nothing, or both.
    """
    return split_within(name.as_posix())
