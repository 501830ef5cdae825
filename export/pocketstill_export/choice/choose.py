"""The choice under a budget: the smallest or the fastest variant that is still close enough to the checkpoint.

A figure holds when it does so with its standard error against it: mean KL plus one error, top-1 agreement minus one,
points of accuracy lost plus one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketstill.bundle import SuiteItem, Variant
from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.choice.accuracy import Suite
from pocketstill_export.choice.candidates import (
    MIXED,
    MIXED_FILE,
    Candidate,
    Choice,
    Objective,
    Searched,
    Tolerance,
    pick,
    with_fronts,
)
from pocketstill_export.choice.judge import Judge, decode_rates
from pocketstill_export.choice.sensitivity import BASE, Mixture, TypeSearch
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.imatrix import Imatrix
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.parity.logits import load_reference

_MIXTURE = Variant(MIXED, "gguf", MIXED_FILE, (MIXED_FILE,), 0)


@dataclass(frozen=True)
class _Judges:
    """What candidates are held to: `reported` texts, `searched` ones for the search alone, and questions."""

    reported: Judge
    searched: Judge | None
    graded: Suite | None


def choose(
    checkpoint: Checkpoint,
    folder: str | Path,
    variants: Sequence[Variant],
    texts: Sequence[str],
    *,
    tolerance: Tolerance,
    objective: Objective,
    context_length: int,
    imatrix: Imatrix | None = None,
    mixed: bool = True,
    suite: Sequence[SuiteItem] | None = None,
    max_bytes: int | None = None,
    max_new_tokens: int = 256,
    max_tokens: int = 8192,
    repetitions: int = 7,
    threads: int | None = None,
    base: str = BASE,
    parts: int = 1,
    search_seconds: float = 1800.0,
    full_gguf: Path | None = None,
) -> Choice:
    """Measures every variant in `folder`, tries a mixture of types, and picks by `objective`.

    Of the fastest, those whose quartiles meet the very fastest's count as equally fast, and the smallest of them is
    taken. The mixture is searched over every second text and measured, as all variants are, over the others; it
    is kept, as `model-mixed.gguf`, when it is on the front of size and KL.

    Args:
        checkpoint: what the variants were made from.
        folder: the bundle; its index is left alone.
        variants: of that bundle.
        texts: held-out ones, as the student will see them; two at least for the mixture.
        tolerance: what must hold.
        objective: what is wanted least: bytes, or the time of a decoded token.
        context_length: no sequence is longer than this.
        imatrix: for the mixture.
        mixed: whether to search for the mixture.
        suite: the questions behind `accuracy_points`.
        max_bytes: no larger variant is chosen.
        max_new_tokens: of an answer to a question of the suite.
        max_tokens: about as many tokens are compared, of each half of the texts.
        repetitions: of the decode timing, after a warm-up; all variants take turns.
        threads: of the engines; None takes one for small students, and leaves it to the engine above.
        base: the type that the mixture starts at.
        parts: runs of layers that the mixture tells apart.
        search_seconds: how long mixtures are searched for at most.
        full_gguf: the model in f32 GGUF, where there is one already.

    Raises:
        ExportError: a request that cannot be met as it stands.
    """
    folder = Path(folder)
    _check_request(variants, texts, tolerance, suite, repetitions)
    variants = [_weighed(folder, variant) for variant in variants]
    seconds: dict[str, float] = {}
    limits: dict[str, Any] = {"context_length": context_length, "max_tokens": max_tokens, "threads": threads}
    with _step(seconds, "reference"):
        judges = _judges(checkpoint, texts, suite, max_new_tokens, mixed, limits)
    with _step(seconds, "variants"):
        rows = [_measured(judges, folder, variant, tolerance) for variant in variants]
    searched, notes = None, []
    if mixed and judges.searched is None:
        notes.append("no mixture of types was searched for: it takes two held-out texts at least")
    elif judges.searched is not None:
        with _step(seconds, "mixture"), tempfile.TemporaryDirectory(dir=folder, prefix=".choose-") as scratch:
            source = full_gguf or _full_gguf(checkpoint, Path(scratch), context_length)
            options: dict[str, Any] = {"base": base, "parts": parts, "imatrix": imatrix, "seconds": search_seconds}
            search = TypeSearch(source, scratch, judges.searched.check, **options)
            made, searched = _mixture(search, judges, tolerance, rows, folder)
        rows += made
        notes.append(_searched_said(searched))
    every = [*variants, _weighed(folder, _MIXTURE)] if len(rows) > len(variants) else list(variants)
    with _step(seconds, "decode speed"):
        rows = with_fronts(_timed(rows, every, folder, judges.reported, repetitions, context_length))
    chosen, said = pick(rows, objective, tolerance, max_bytes)
    _progress(said)
    return Choice(
        objective=objective,
        tolerance=tolerance,
        max_bytes=max_bytes,
        chosen=chosen,
        said=said,
        candidates=tuple(rows),
        mixed=every[-1] if len(every) > len(variants) else None,
        searched=searched,
        parameters=judges.reported.parameters,
        threads=judges.reported.threads,
        repetitions=repetitions,
        notes=tuple(notes),
        seconds=seconds,
    )


def _judges(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    suite: Sequence[SuiteItem] | None,
    max_new_tokens: int,
    mixed: bool,
    limits: dict[str, Any],
) -> _Judges:
    """All that needs the checkpoint itself, which takes no memory after this."""
    reported, searched = (texts[::2], texts[1::2]) if mixed and len(texts) > 1 else (texts, ())
    reference = load_reference(checkpoint)
    graded = None
    if suite:
        _progress(f"answering {len(suite)} questions by the checkpoint")
        room = {"max_new_tokens": max_new_tokens, "context_length": limits["context_length"]}
        graded = Suite(checkpoint, reference, suite, **room)
    return _Judges(
        Judge(checkpoint, reference, reported, **limits),
        Judge(checkpoint, reference, searched, **limits) if searched else None,
        graded,
    )


def _timed(
    rows: Sequence[Candidate],
    variants: Sequence[Variant],
    folder: Path,
    judge: Judge,
    repetitions: int,
    context_length: int,
) -> list[Candidate]:
    _progress(f"timing {len(rows)} variants in turns")
    rates = decode_rates(folder, variants, judge.prompts, repetitions, judge.threads, context_length)
    return [
        replace(row, decode_tok_s=(it := rates[row.name]).median, decode_low=it.low, decode_high=it.high)
        for row in rows
    ]


def _check_request(
    variants: Sequence[Variant],
    texts: Sequence[str],
    tolerance: Tolerance,
    suite: Sequence[SuiteItem] | None,
    repetitions: int,
) -> None:
    if not variants:
        raise ExportError("there is no variant to choose from; export one at least")
    if not texts:
        raise ExportError("there is no held-out text to measure with; give some that the student was not trained on")
    if tolerance.accuracy_points is not None and not suite:
        raise ExportError("accuracy_points needs questions to count right answers of; give a suite, or another limit")
    if repetitions < 1:
        raise ExportError(f"repetitions is {repetitions}; give 1 or more")


def _weighed(folder: Path, variant: Variant) -> Variant:
    """The variant with the bytes that its files have."""
    return replace(variant, bytes=sum((folder / file).stat().st_size for file in variant.files))


def _measured(judges: _Judges, folder: Path, variant: Variant, tolerance: Tolerance) -> Candidate:
    """One variant's logits and answers; its speed is measured later, beside the others'."""
    _progress(f"measuring {variant.name}")
    engine = judges.reported.open(folder, variant)
    try:
        check = judges.reported.compare(variant.name, engine)
        accuracy, skills = judges.graded.losses(engine) if judges.graded else (None, {})
    finally:
        engine.close()
    excess = tolerance.excess(check, accuracy)
    return Candidate(
        name=variant.name,
        engine=variant.engine,
        bytes=variant.bytes,
        tokens=check.tokens,
        kl_mean=check.kl_mean,
        kl_mean_error=check.kl_mean_error,
        kl_p999=check.kl_p999,
        kl_max=check.kl_max,
        top1=check.top1,
        top1_error=check.top1_error,
        decode_tok_s=0.0,
        decode_low=0.0,
        decode_high=0.0,
        accuracy=accuracy,
        skills=skills,
        tensor_types={},
        within=excess <= 1,
        excess=excess,
    )


def _full_gguf(checkpoint: Checkpoint, scratch: Path, context_length: int) -> Path:
    path = scratch / "f32.gguf"
    write_gguf(checkpoint, path, precision="f32", context_length=context_length, name=checkpoint.folder.name)
    return path


def _mixture(
    search: TypeSearch,
    judges: _Judges,
    tolerance: Tolerance,
    rows: Sequence[Candidate],
    folder: Path,
) -> tuple[list[Candidate], Searched]:
    """The smallest mixture found within the tolerance, if it is on the front beside `rows`; and how it was found."""
    started = time.perf_counter()
    limit = min((row.bytes for row in rows if row.within and row.engine == "gguf"), default=None)
    path: list[tuple[int, float, float]] = []
    made: list[Candidate] = []
    try:
        for mixture in search.raises():
            path.append((mixture.bytes, mixture.check.kl_mean, mixture.check.kl_mean_error))
            _progress(f"mixture {len(path) - 1}: {mixture.bytes:,} bytes, KL {mixture.check.kl_mean:.3g}")
            if limit is not None and mixture.bytes >= limit:
                break
            found = _held(search, mixture, judges, tolerance, folder)
            if found is not None:
                made = [row for row in with_fronts([*rows, found])[-1:] if row.on_size_front]
                break
    finally:
        if not made:
            (folder / MIXED_FILE).unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return made, Searched(
        search.base, tuple(search.gains), tuple(path), search.trials, seconds, bool(made), search.over
    )


def _held(
    search: TypeSearch,
    mixture: Mixture,
    judges: _Judges,
    tolerance: Tolerance,
    folder: Path,
) -> Candidate | None:
    """The mixture, trimmed if that holds too, as a candidate within the tolerance; None where it is not.

    The search's own texts have the first word. The others, which the search has not seen, have the last.
    """

    def good(it: Mixture) -> bool:
        return tolerance.excess(it.check, None) <= 1

    if not good(mixture):
        return None
    tries = [search.trimmed(mixture, good), mixture] if tolerance.on_logits else [mixture]
    for it in tries:
        search.write(it.types, folder / MIXED_FILE)
        row = _measured(judges, folder, _weighed(folder, _MIXTURE), tolerance)
        if row.within:
            return replace(row, tensor_types=search.overrides(it.types))
    return None


def _searched_said(searched: Searched) -> str:
    cost = f"{searched.trials} files tried in {searched.seconds:.0f} s"
    if searched.kept:
        return f"{MIXED} is a mixture of types, found by raising groups of tensors from {searched.base} ({cost})"
    if searched.over:
        return f"no mixture of types was found in the time that the search had ({cost})"
    return f"no mixture of types is both within the tolerance and on the front of size and KL ({cost})"


@contextmanager
def _step(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _progress(text: str) -> None:
    print(f"choose: {text}", file=sys.stderr, flush=True)
