"""llama.cpp's quantizer in this process: its C structs filled in, its log kept, and a run without writing.

The structs are those of llama.h. Everything that the quantizer reads must live until it returns, so each call keeps
its arrays in local names.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketstill_export.errors import ExportError

# One line a tensor of the quantizer's log, in a run that writes nothing.
_PLANNED = re.compile(r"\] (\S+)\s+- \[\s*(\d+)[^\]]*\], type =\s+(\S+), size =\s+\S+ MiB(?: ->\s+\S+ MiB \((\S+)\))?")
_TEXT_BYTES = 127


@dataclass(frozen=True)
class Request:
    """What the quantizer is asked for. Types are ggml's numbers; `weights` are mean squared inputs, a value a column.

    `overrides` are (pattern, type): the first pattern that std::regex finds in a tensor's name decides its type.
    `metadata` goes into the file, strings and whole numbers.
    """

    kind: str
    weights: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    overrides: Sequence[tuple[str, int]] = ()
    token_embedding: int | None = None
    output: int | None = None
    metadata: Mapping[str, str | int] = field(default_factory=dict)
    threads: int | None = None


@dataclass(frozen=True)
class Planned:
    """A tensor's width (the length of its rows), and its type before and after, as `q4_k`."""

    width: int
    before: str
    after: str


def planned_types(source: str | Path, request: Request) -> dict[str, Planned]:
    """What the quantizer would choose for each tensor; nothing is written.

    Raises:
        ExportError: llama.cpp refuses the file or the request; the message is its own words.
    """
    status, lines = _run(source, "", request, dry=True)
    if status != 0:
        raise ExportError(_last_words(lines))
    found = _PLANNED.findall("".join(lines))
    return {
        name: Planned(int(width), before.lower(), (after or before).lower()) for name, width, before, after in found
    }


def run_quantizer(source: str | Path, target: str | Path, request: Request) -> None:
    """Writes `target`.

    Raises:
        ExportError: it fails, on a full disk for instance; the message is llama.cpp's own words.
    """
    status, lines = _run(source, target, request, dry=False)
    if status != 0:
        raise ExportError(_last_words(lines))


def _run(source: str | Path, target: str | Path, request: Request, *, dry: bool) -> tuple[int, deque[str]]:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _file_type(request.kind)
    params.nthread = request.threads or min(8, os.cpu_count() or 1)
    params.dry_run = dry
    weights, overrides, metadata = _weights(request), _overrides(request), _metadata(request)
    if request.weights:
        params.imatrix = weights
    if request.overrides:
        params.tt_overrides = overrides
    if request.metadata:
        params.kv_overrides = metadata
    if request.token_embedding is not None:
        params.token_embedding_type = request.token_embedding
    if request.output is not None:
        params.output_tensor_type = request.output
    with captured_log(None if dry else 64) as lines:
        status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    return status, lines


def _last_words(lines: deque[str]) -> str:
    """Why llama.cpp failed, in one line; its reason stands behind "failed to quantize:"."""
    words = "".join(lines).rpartition("failed to quantize:")[2]
    return " ".join(" ".join(words.split("\n")[-3:]).split()) or "no reason given"


def _file_type(kind: str) -> int:
    import llama_cpp

    return int(getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}"))


def _weights(request: Request) -> Any:
    """A C array of {name, data, size}, ended by one without a name; it keeps the values that it points to alive."""
    import llama_cpp

    entry = llama_cpp.llama_model_imatrix_data
    array = (entry * (len(request.weights) + 1))()
    # Assigning a pointer to a struct's field does not keep the numpy array behind it; this list, hung on the C
    # array, does.
    array.values = [np.ascontiguousarray(values, dtype=np.float32) for values in request.weights.values()]
    for place, (name, values) in enumerate(zip(request.weights, array.values, strict=True)):
        pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        array[place] = entry(name.encode(), pointer, values.size)
    return array


def _overrides(request: Request) -> Any:
    import llama_cpp

    entry = llama_cpp.llama_model_tensor_override
    entries = [entry(pattern.encode(), number) for pattern, number in request.overrides]
    return (entry * (len(entries) + 1))(*entries)


def _metadata(request: Request) -> Any:
    import llama_cpp

    entry = llama_cpp.llama_model_kv_override
    array = (entry * (len(request.metadata) + 1))()
    for place, (key, value) in enumerate(request.metadata.items()):
        array[place].key = key.encode()
        if isinstance(value, int):
            array[place].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
            array[place].value.val_i64 = value
        else:
            array[place].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
            short = value.encode()[:_TEXT_BYTES].decode("utf-8", errors="ignore")
            array[place].value.val_str = short.encode()
    return array


@contextlib.contextmanager
def captured_log(keep: int | None = 64) -> Iterator[deque[str]]:
    """Keeps llama.cpp's last `keep` log pieces (all with None) instead of letting it write them to stderr."""
    import llama_cpp

    lines: deque[str] = deque(maxlen=keep)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def remember(_level: int, text: bytes, _data: int | None) -> None:
        lines.append(text.decode("utf-8", errors="replace"))

    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(remember, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(before, data)
