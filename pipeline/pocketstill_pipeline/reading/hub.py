"""Data sets through `datasets`: those of the Hugging Face hub, streamed, and folders that it saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError

from .files import batch_records
from .rows import Record, split_within

PREFIX = "hf:"
_NAME = re.compile(r"(?P<name>[^@:\s]+)(?:@(?P<config>[^:\s]+))?(?::(?P<split>\S+))?")
_BATCH = 256


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote a folder."""
    single = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return single or (folder / "dataset_dict.json").is_file()


def read_saved(folder: Path, shown: str) -> Iterator[Record]:
    """The records of a folder that `save_to_disk` wrote, split after split.

    Raises:
        UserError: it is broken.
    """
    import datasets
    import pyarrow

    try:
        found = datasets.load_from_disk(str(folder))
        parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
        for name, part in parts.items():
            yield from _rows(part, f"{shown}:{name}" if name else shown, name)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        said = _short(error)
        raise UserError(f"{shown}: is no whole folder of save_to_disk ({said}); save it again") from None


def read_hub(source: str) -> Iterator[Record]:
    """The records of `hf:owner/name`, with `@config` and `:split` where they are given.

    They are streamed; without a way to the hub the local cache of `datasets` is read. Without a split all are read,
    and their names say which side a row is of.

    Raises:
        UserError: the name is none, there is no such data set, config or split, or it cannot be reached.
    """
    match = _NAME.fullmatch(source.removeprefix(PREFIX))
    if match is None:
        raise UserError(f"{source}: is no data set's name; write hf:owner/name, hf:owner/name@config:split")
    name, config, split = match["name"], match["config"], match["split"]
    try:
        found = _load(name, config, split)
        parts = dict(found) if isinstance(found, dict) else {"": found}
        for part, rows in parts.items():
            shown = f"{source}:{part}" if part else source
            yield from _rows(rows, shown, part)
    except UserError:
        raise
    except Exception as error:
        # The libraries between here and the hub raise errors of many kinds, of their transports too.
        raise UserError(f"{source}: {_hub_reason(error, name, config)}") from error


def _load(name: str, config: str | None, split: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except ConnectionError:
        # Asked again without need, `datasets` would wait for the hub another half minute.
        if not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
            raise
        return datasets.load_dataset(name, config, split=split)


def _rows(part: Any, shown: str, split: str) -> Iterator[Record]:
    """As Arrow tables, so that no picture or sound is decoded; classes come as their names."""
    features = part.features or {}
    names = {column: kind.names for column, kind in features.items() if type(kind).__name__ == "ClassLabel"}
    number = 0
    for table in part.with_format("arrow").iter(batch_size=_BATCH):
        for record in batch_records(table, shown, number):
            row = record.row
            if row is not None:
                for column, known in names.items():
                    value = row.get(column)
                    if isinstance(value, int):
                        # -1 stands for no label.
                        row[column] = known[value] if 0 <= value < len(known) else None
            yield Record(record.where, row, record.why, split_within(split))
        number += table.num_rows


def _hub_reason(error: Exception, name: str, config: str | None) -> str:
    said = _short(error)
    low = f"{type(error).__name__} {said}".lower()
    if "gated" in low or "401" in low or "403" in low:
        return "asks for consent or a login; accept its terms on the hub, then set HF_TOKEN to a token of that account"
    if "config" in low and config is None:
        return f"{said}; write hf:{name}@CONFIG with one of them"
    if "config" in low or "split" in low:
        return f"{said}; write one of them"
    if re.search("offline|connect|reach|timeout|timed out", low):
        return f"the hub cannot be reached and the data set is not in the local cache ({said}); connect once"
    if re.search("notfound|doesn't exist|couldn't find|404", low):
        return "is neither a data set of the hub nor a folder here; mend the name, or set HF_TOKEN if it is private"
    return f"cannot be read ({said}); download its files and give their folder"


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:240].rstrip(".")
