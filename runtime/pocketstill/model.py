"""A bundle ready to answer: text in, text out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.bundle import Bundle, Variant
from pocketstill.engines import Engine, installed_variant, open_engine
from pocketstill.errors import BundleError, UserError
from pocketstill.files import read_json
from pocketstill.grading import split_completion
from pocketstill.template import render

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What the model said. `text` is all of it; `rationale` may be empty; `answer` is the part to show.

    `prompt_tokens` and `completion_tokens` count ids, the stop token not among them; `ttft_ms` is the time to
    the first token and `seconds` the whole.
    """

    text: str
    rationale: str
    answer: str
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    seconds: float


class Model:
    """A loaded bundle; made by `load`. Answers one question at a time. Also a context manager."""

    def __init__(self, bundle: Bundle, variant: Variant, engine: Engine, threads: int | None) -> None:
        # The Rust tokenizer warns, and starts threads, unless it is told not to.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        self.bundle = bundle
        self.variant = variant
        self.engine = engine
        self.threads = threads
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(bundle.tokenizer))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{bundle.tokenizer} is not a tokenizer ({error}); export it again") from error
        self._special = _special_tokens(bundle.folder)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it are parsed, none are added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def prompt_ids(self, messages: Messages | str, **extra: Any) -> list[int]:
        """The ids of the rendered chat template. A plain string is one user message."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.encode(render(self.bundle.template, messages, **{**self._special, **extra}))

    def stream_ids(
        self,
        messages: Messages | str,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[int]:
        """New ids, one by one. What is not given is taken from the bundle's generation defaults.

        Raises:
            UserError: when the prompt does not fit into the context.
        """
        return self._generate(self.prompt_ids(messages), max_new_tokens, temperature, top_p, seed)

    def _generate(
        self,
        ids: list[int],
        max_new_tokens: int | None,
        temperature: float | None,
        top_p: float | None,
        seed: int,
    ) -> Iterator[int]:
        defaults = self.bundle.generation
        return self.engine.generate(
            ids,
            max_new_tokens=int(defaults.get("max_new_tokens", 256)) if max_new_tokens is None else max_new_tokens,
            stop_ids=self.bundle.stop_ids,
            temperature=float(defaults.get("temperature", 0.0)) if temperature is None else temperature,
            top_p=float(defaults.get("top_p", 1.0)) if top_p is None else top_p,
            seed=seed,
        )

    def stream(self, messages: Messages | str, **generation: Any) -> Iterator[str]:
        """New text, piece by piece, never cut inside of a character. Options are those of `stream_ids`."""
        return self.detokenize(self.stream_ids(messages, **generation))

    def detokenize(self, ids: Iterator[int]) -> Iterator[str]:
        """Text from ids as they come; a piece is held back while it ends inside of a character."""
        # The piece given out last is decoded again with the next, since decoders may treat a first token
        # specially; it begins and ends between characters.
        last: list[int] = []
        pending: list[int] = []
        before = 0
        for token in ids:
            pending.append(token)
            text = self.decode(last + pending)
            if len(text) > before and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[before:]
                last, pending = pending, []
                before = len(self.decode(last))
        if pending:
            yield self.decode(last + pending)[before:]

    def answer(self, question: Messages | str, **generation: Any) -> Answer:
        """Answers a question in full. Options are those of `stream_ids`.

        Raises:
            UserError: when the prompt does not fit into the context.
        """
        start = time.perf_counter()
        prompt = self.prompt_ids(question)
        options = {"max_new_tokens": None, "temperature": None, "top_p": None, "seed": 0, **generation}
        ids: list[int] = []
        ttft = 0.0
        for token in self._generate(prompt, **options):
            if not ids:
                ttft = time.perf_counter() - start
            ids.append(token)
        seconds = time.perf_counter() - start
        text = self.decode(ids)
        rationale, answer = split_completion(text)
        return Answer(text, rationale, answer, len(prompt), len(ids), 1000 * (ttft or seconds), seconds)

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _special_tokens(folder: Path) -> dict[str, str]:
    """bos_token and eos_token, which a template may name, from tokenizer_config.json when there is one."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    found = {}
    for name in ("bos_token", "eos_token"):
        value = config.get(name) if isinstance(config, dict) else None
        value = value.get("content") if isinstance(value, dict) else value
        found[name] = value if isinstance(value, str) else ""
    return found


def load(
    folder: str | Path,
    variant: str | None = None,
    *,
    adapter: str | None = None,
    threads: int | None = None,
    check: bool = True,
) -> Model:
    """Loads a bundle, by default in the variant that it names as the default, if its engine is installed.

    Args:
        folder: the bundle.
        variant: one of its variants by name.
        adapter: the LoRA adapter to answer with, for a bundle that keeps some apart; None answers as the base.
        threads: CPU threads; by default what was measured when the bundle was verified.
        check: compares every file's hash first.

    Raises:
        BundleError: when the folder is not what its index says, or has no such variant or adapter.
        EngineError: when the engine is missing or refuses the file.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}; give 1 or more")
    bundle = Bundle.load(folder, check=check)
    chosen = bundle.variant(variant) if variant else installed_variant(bundle)
    threads = threads or bundle.threads.get(chosen.name)
    engine = open_engine(bundle.folder, chosen, threads=threads, context_length=bundle.context_length, adapter=adapter)
    return Model(bundle, chosen, engine, threads)
