"""Measuring for the choice: a file's distance from the checkpoint, and the decode speed of several in turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pocketstill.bundle import Variant
from pocketstill.engines import Engine, open_engine
from pocketstill.measure import decode_rate
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.parity.logits import LogitsCheck, Reference, compare_logits, log_softmax, token_sequences

_LONGEST = 1024
# The checkpoint's log-probabilities are kept, 8 bytes each.
_MOST_BYTES = 1 << 30
# All engines are kept loaded while they take turns, where their files are no more than this together.
_TOGETHER = 1 << 30
_DECODE = 128


@dataclass(frozen=True)
class Rates:
    """Decode speeds in tokens/s: the median of the repetitions, and the quartiles."""

    median: float
    low: float
    high: float


class Judge:
    """Holds files to the checkpoint over the same texts, whose log-probabilities are computed once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reference: Reference,
        texts: Sequence[str],
        *,
        context_length: int,
        max_tokens: int,
        threads: int | None = None,
    ) -> None:
        """
        Raises:
            ExportError: no text has a token.
        """
        longest = min(context_length, _LONGEST) - 1
        most = max(1, min(max_tokens, _MOST_BYTES // (8 * int(checkpoint.config.vocab_size))))
        self._sequences = token_sequences(checkpoint.load_tokenizer(), texts, longest, most)
        if not self._sequences:
            raise ExportError("the held-out texts have no token; give texts like those that the student is for")
        self._expected = [log_softmax(reference.logits(ids)) for ids in self._sequences]
        self._context_length = context_length
        self.parameters = checkpoint.parameters
        self.threads = threads or checkpoint.threads

    @property
    def prompts(self) -> list[list[int]]:
        """The first halves of the texts: what follows them is not yet the end of an answer."""
        return [ids[: max(1, len(ids) // 2)] for ids in self._sequences]

    def open(self, folder: Path, variant: Variant) -> Engine:
        """An engine on a variant; the caller closes it."""
        return open_engine(folder, variant, threads=self.threads, context_length=self._context_length)

    def compare(self, name: str, engine: Engine) -> LogitsCheck:
        """The engine's logits against the checkpoint's."""
        return compare_logits(name, engine.logits, self._sequences, self._expected)

    def check(self, path: Path) -> LogitsCheck:
        """The logits of a GGUF file against the checkpoint's."""
        engine = self.open(path.parent, Variant(path.stem, "gguf", path.name, (path.name,), 0))
        try:
            return self.compare(path.stem, engine)
        finally:
            engine.close()


def decode_rates(
    folder: Path,
    variants: Sequence[Variant],
    prompts: Sequence[Sequence[int]],
    repetitions: int,
    threads: int | None,
    context_length: int,
) -> dict[str, Rates]:
    """Decode speed of each variant. In every round each decodes after the same prompt, so that a slow moment of the
    machine meets all of them; the first round is a warm-up.

    An engine that ends by itself right after a prompt gives no figure for that round.
    """
    tokens = max(1, min(_DECODE, context_length // 2))
    found: dict[str, list[float]] = {variant.name: [] for variant in variants}
    kept: dict[str, Engine] = {}
    with ExitStack() as stack:

        def engine_for(variant: Variant, own: ExitStack) -> Engine:
            engine = open_engine(folder, variant, threads=threads, context_length=context_length)
            own.callback(engine.close)
            return engine

        if sum(variant.bytes for variant in variants) <= _TOGETHER:
            kept = {variant.name: engine_for(variant, stack) for variant in variants}
        for turn in range(repetitions + 1):
            ids = list(prompts[turn % len(prompts)])[: max(1, context_length - tokens - 1)]
            # To and fro, so that none always follows the same one.
            for variant in variants if turn % 2 else reversed(variants):
                with ExitStack() as own:
                    engine = kept.get(variant.name) or engine_for(variant, own)
                    rate = decode_rate(engine, ids, tokens)
                if turn and rate:
                    found[variant.name].append(rate)
    return _quartiles(found)


def _quartiles(found: Mapping[str, Sequence[float]]) -> dict[str, Rates]:
    rates = {}
    for name, values in found.items():
        if not values:
            raise ExportError(f"{name} decodes nothing after the held-out texts; give others, or leave the variant out")
        if len(values) == 1:
            rates[name] = Rates(values[0], values[0], values[0])
        else:
            low, median, high = statistics.quantiles(values, n=4, method="inclusive")
            rates[name] = Rates(median, low, high)
    return rates
