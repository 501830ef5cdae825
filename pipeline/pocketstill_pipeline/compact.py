"""Responses as the ledger keeps them: large ones compressed, lists of log probabilities by column."""

from __future__ import annotations

import json
import re
import zlib
from itertools import accumulate
from typing import Any

# Below this, compressing saves less than a page of the file.
_SMALL_BYTES = 2048
# Decimals that a log probability keeps: 0.01 % of its probability.
_DECIMALS = 4
_SCALE = 10**_DECIMALS
_MARKS = "|~^`\t"
# Halves of characters, which JSON can spell and no file in UTF-8 can hold.
HALVES = re.compile("[\ud800-\udfff]")


def slim(body: Any) -> bool:
    """Round a response's log probabilities to four decimals and drop `bytes` that only repeat their token, in place.

    Returns whether there were any. What does not look like them is left alone.
    """
    found = False
    for entries in _contents(body):
        found = True
        for entry in entries:
            _slim_entry(entry)
            for other in entry.get("top_logprobs") or ():
                _slim_entry(other)
    return found


def spelled(text: str) -> str:
    """JSON text with halves of characters spelled as escapes: as they are, no file in UTF-8 can hold them."""
    return text if text.isascii() else HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def packed(response: str) -> str | bytes:
    """The response as it is stored: itself where it is small, else compressed."""
    if len(response) < _SMALL_BYTES:
        return response
    body = _read(response) if '"top_logprobs"' in response else None
    if body is not None:
        for choice in _choices(body):
            logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
            if isinstance(logprobs, dict) and (columns := _columns(logprobs.get("content"))) is not None:
                choice["logprobs"] = logprobs | {"content": None, "columns": columns}
        response = spelled(json.dumps(body, ensure_ascii=False, separators=(",", ":")))
    return zlib.compress(response.encode())


def unpacked(stored: str | bytes | None) -> str | None:
    """The response that `packed` was given; the values of its JSON, where it held log probabilities.

    Raises:
        ValueError: it is damaged.
    """
    if not isinstance(stored, bytes):
        return stored
    try:
        response = zlib.decompress(stored).decode()
    except zlib.error as error:
        raise ValueError(f"a response is damaged: {error}") from None
    body = _read(response) if '"columns":' in response else None
    if body is None:
        return response
    for choice in _choices(body):
        logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
        if isinstance(logprobs, dict) and (columns := logprobs.pop("columns", None)) is not None:
            logprobs["content"] = _entries(columns)
    return spelled(json.dumps(body, ensure_ascii=False))


def _read(response: str) -> Any:
    """The JSON of a response; None where it is none: an answer that was cut is kept too."""
    try:
        return json.loads(response)
    except (ValueError, RecursionError):
        return None


def _choices(body: Any) -> list[Any]:
    choices = body.get("choices") if isinstance(body, dict) else None
    return choices if isinstance(choices, list) else []


def _contents(body: Any) -> list[list[dict[str, Any]]]:
    """The lists of log probabilities of a response, one a choice."""
    found = []
    for choice in _choices(body):
        logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
            found.append(content)
    return found


def _slim_entry(entry: Any) -> None:
    if not isinstance(entry, dict):
        return
    if isinstance(entry.get("logprob"), float):
        entry["logprob"] = round(entry["logprob"], _DECIMALS)
    token, data = entry.get("token"), entry.get("bytes")
    if "bytes" in entry and isinstance(token, str) and (data is None or data == list(token.encode())):
        del entry["bytes"]


def _columns(content: Any) -> dict[str, Any] | None:
    """Log probabilities by column: tokens apart from values, and values as differences of whole ten-thousandths.

    A k of 20 over a vocabulary of 32,000 costs 120 to 140 bytes a token so, compressed; as it came, 190. None where an
    entry has anything else in it.
    """
    try:
        tops = [entry["top_logprobs"] for entry in content]
        plain = all(
            entry.keys() == {"token", "logprob", "top_logprobs"} and all(t.keys() == {"token", "logprob"} for t in top)
            for entry, top in zip(content, tops, strict=True)
        )
        if not plain:
            return None
        chosen = []
        for entry, top in zip(content, tops, strict=True):
            own = {"token": entry["token"], "logprob": entry["logprob"]}
            chosen.append(top.index(own) if own in top else [own["token"], own["logprob"]])
        values = []
        for top in tops:
            whole = [round(t["logprob"] * _SCALE) for t in top]
            if any(number / _SCALE != t["logprob"] for number, t in zip(whole, top, strict=True)):
                return None
            values.append([a - b for a, b in zip([0, *whole], whole, strict=False)])
        return _joined([[t["token"] for t in top] for top in tops]) | {"steps": values, "chosen": chosen}
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        return None


def _joined(tokens: list[list[str]]) -> dict[str, Any]:
    """Tokens as one text an entry, parted by a mark that none of them has; as lists where there is no such mark."""
    used = set("".join(token for row in tokens for token in row))
    mark = next((mark for mark in _MARKS if mark not in used), None)
    if mark is None or not all(tokens):
        return {"tokens": tokens}
    return {"tokens": [mark.join(row) for row in tokens], "mark": mark}


def _entries(columns: dict[str, Any]) -> list[dict[str, Any]]:
    entries = []
    mark = columns.get("mark")
    rows = [row.split(mark) for row in columns["tokens"]] if mark else columns["tokens"]
    for tokens, steps, chosen in zip(rows, columns["steps"], columns["chosen"], strict=True):
        values = (-total / _SCALE if total else 0.0 for total in accumulate(steps))
        top = [{"token": token, "logprob": value} for token, value in zip(tokens, values, strict=True)]
        own = top[chosen] if isinstance(chosen, int) else {"token": chosen[0], "logprob": chosen[1]}
        entries.append(own | {"top_logprobs": top})
    return entries
