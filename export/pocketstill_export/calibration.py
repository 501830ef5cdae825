"""Texts of the kind that the student is for, as token ids: for importance matrices and calibrated rounding."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError
from pocketstill.template import render
from pocketstill_export.checkpoint import Checkpoint, token_string
from pocketstill_export.errors import ExportError

_COLUMNS = ("text", "messages", "completion", "rationale", "answer")


def read_calibration(
    path: str | Path, checkpoint: Checkpoint, *, max_tokens: int = 65536, context_length: int = 512
) -> list[list[int]]:
    """Token ids of a file's texts, special tokens parsed, none longer than `context_length` or the model's context.

    A `.jsonl` or `.parquet` file has a text a row, in `text` or in `messages`. Messages are rendered by the
    checkpoint's chat template; a `completion`, or the `rationale` and `answer` of our own train.parquet, follows
    them as the assistant's words. A long row is cut into several sequences. Anything else is one plain text, cut as
    llama-imatrix does: each piece is `context_length` long and starts with BOS where the tokenizer adds one, and
    the rest is left out unless it is all there is.

    When there is more than about `max_tokens`, rows are drawn, the same ones each time, and kept in the file's order.

    Raises:
        ExportError: the file cannot be read, a row of it is no text, or there is no text at all.
    """
    path = Path(path)
    length = min(context_length, int(checkpoint.config.max_position_embeddings))
    if length < 2 or max_tokens < 1:
        raise ExportError(f"calibration takes 2 or more tokens a text, 1 or more in all, not {length} and {max_tokens}")
    encoder = _Encoder(checkpoint, length)
    try:
        if path.suffix == ".jsonl":
            found = _draw_rows(encoder, _jsonl_rows(path), max_tokens)
        elif path.suffix == ".parquet":
            found = _draw_rows(encoder, _parquet_rows(path), max_tokens)
        else:
            found = _draw_pieces(encoder.plain(path.read_bytes().decode("utf-8")), max_tokens)
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not UTF-8 text (byte {error.start}); give .txt, .jsonl or .parquet") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}; name another file") from None
    if not found:
        raise ExportError(f"{path} holds no text; give what the student is for, some thousand tokens of it")
    return found


class _Encoder:
    """Texts to sequences of at most `length` ids."""

    def __init__(self, checkpoint: Checkpoint, length: int) -> None:
        self.template = checkpoint.template
        config = checkpoint.tokenizer_config
        self.bos_token, self.eos_token = (token_string(config.get(f"{end}_token")) or "" for end in ("bos", "eos"))
        self.end = checkpoint.stop_ids[0]
        self.length = length
        self.tokenizer = checkpoint.load_tokenizer()
        sample = self.tokenizer.encode("a")
        self.bos = sample.ids[0] if sample.ids and sample.special_tokens_mask[0] else None

    def plain(self, text: str) -> list[list[int]]:
        """A whole text as llama-imatrix cuts it."""
        ids = list(self.tokenizer.encode(text).ids)
        whole = len(ids) // self.length * self.length
        return self._cut(ids[: whole or len(ids)], self.bos)

    def row(self, row: Mapping[str, Any]) -> list[list[int]]:
        """A row's text or conversation, to its end."""
        if isinstance(row.get("text"), str):
            return self._cut(list(self.tokenizer.encode(row["text"]).ids), self.bos)
        messages, said = row["messages"], _said(row)
        open_end = said is not None or messages[-1]["role"] != "assistant"
        prompt = render(
            self.template,
            messages,
            add_generation_prompt=open_end,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )
        ids = self._ids(prompt)
        if said is not None:
            # Encoded apart, as the student met them in training.
            ids += [*self._ids(said), self.end]
        return self._cut(ids, None)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _cut(self, ids: list[int], bos: int | None) -> list[list[int]]:
        pieces = [ids[start : start + self.length] for start in range(0, len(ids), self.length)]
        return pieces if bos is None else [[bos, *piece[1:]] for piece in pieces]


def _said(row: Mapping[str, Any]) -> str | None:
    """The assistant's words of a row, in the form that our own students learn: reasons, then "Answer: ..."."""
    if isinstance(row.get("completion"), str):
        return str(row["completion"])
    if not isinstance(row.get("answer"), str):
        return None
    return f"{row['rationale']}\nAnswer: {row['answer']}" if row.get("rationale") else str(row["answer"])


def _draw_rows(encoder: _Encoder, rows: Iterable[tuple[str, Mapping[str, Any]]], max_tokens: int) -> list[list[int]]:
    """Whole rows in a random order of always the same seed, until there are enough tokens; then in the file's order.

    Every row's form is checked, but only those drawn are encoded.
    """
    checked = [(where, _checked(where, row)) for where, row in rows]
    order = list(range(len(checked)))
    random.Random(0).shuffle(order)
    drawn: dict[int, list[list[int]]] = {}
    total = 0
    for place in order:
        if total >= max_tokens:
            break
        where, row = checked[place]
        try:
            drawn[place] = encoder.row(row)
        except UserError as error:
            raise ExportError(f"{where}: {error}") from None
        total += sum(map(len, drawn[place]))
    return [piece for place in sorted(drawn) for piece in drawn[place]]


def _draw_pieces(pieces: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Pieces spread evenly over the text, as many as are enough."""
    if not pieces:
        return []
    count = min(len(pieces), -(-max_tokens // len(pieces[0])))
    return [pieces[number * len(pieces) // count] for number in range(count)]


def _jsonl_rows(path: Path) -> Iterable[tuple[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    yield where, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ExportError(f"{where}: this is no JSON ({error.msg}); mend or remove it") from None


def _parquet_rows(path: Path) -> Iterable[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise ExportError(f"{path} is no parquet file ({str(error).splitlines()[0]}); write it again") from None


def _checked(where: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ExportError(f"{where}: this is no object with text or messages; mend or remove it")
    if isinstance(row.get("text"), str):
        return row
    messages = row.get("messages")
    if messages is None:
        raise ExportError(f"{where}: there is neither text nor messages; mend or remove it")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise ExportError(f"{where}: messages is no list of objects with role and content; mend or remove it")
    return row


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
