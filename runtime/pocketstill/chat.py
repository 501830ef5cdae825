"""Talks to a bundle in a terminal, streaming."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pocketstill.errors import UserError
from pocketstill.model import Model, load


def chat(
    folder: str | Path,
    *,
    variant: str | None = None,
    adapter: str | None = None,
    question: str | None = None,
    remember: bool = False,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    source: TextIO | None = None,
    out: TextIO | None = None,
) -> int:
    """Streams an answer to each line of input, until it ends or says `/quit`; returns how many were answered.

    Args:
        folder: the bundle.
        variant: by name; the default otherwise.
        adapter: the LoRA adapter to answer with, for a bundle that keeps some apart.
        question: answers this one and ends, reading no input.
        remember: sends the earlier turns along; a student of one skill answers each question on its own.
        temperature: 0 is greedy; the bundle's default when not given.
        max_new_tokens: likewise.
        source: where questions come from; standard input by default.
        out: where answers go; standard output by default.

    Raises:
        BundleError: when the bundle is not what its index says.
        EngineError: when the engine is missing or refuses the file.
    """
    source, out = source or sys.stdin, out or sys.stdout
    with load(folder, variant, adapter=adapter) as model:
        if question is None and source.isatty():
            print(
                f"{model.bundle.name} ({model.variant.name}). Ask a question; /quit or Ctrl-D ends.",
                file=sys.stderr,
            )
        turns = 0
        history: list[dict[str, str]] = []
        for asked in _questions(source) if question is None else [question]:
            history = [*(history if remember else ()), {"role": "user", "content": asked}]
            try:
                text = _show(model, history, out, temperature, max_new_tokens)
            except KeyboardInterrupt:
                print(file=out)
                history = []
                continue
            except UserError as error:
                if question is not None:
                    raise
                print(f"error: {error}", file=sys.stderr)
                history = []
                continue
            history = [*history, {"role": "assistant", "content": text}]
            turns += 1
    return turns


def _show(
    model: Model,
    messages: list[dict[str, str]],
    out: TextIO,
    temperature: float | None,
    max_new_tokens: int | None,
) -> str:
    said = []
    for piece in model.stream(messages, temperature=temperature, max_new_tokens=max_new_tokens):
        said.append(piece)
        out.write(piece)
        out.flush()
    print(file=out, flush=True)
    return "".join(said)


def _questions(source: TextIO) -> Iterator[str]:
    while True:
        try:
            # input() gives line editing, which a bare readline on a terminal does not.
            line = input("> ") if source is sys.stdin and source.isatty() else source.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not line and not (source is sys.stdin and source.isatty()):
            return
        if line.strip() in ("/quit", "/exit"):
            return
        if line.strip():
            yield line.strip()
