"""The quote: what a recipe will ask for, and what that will cost, before the first request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .elicit.base import Planned
from .elicit.methods import METHODS
from .endpoints import LOCAL
from .entries import context_of, entries_of
from .example import Question
from .ledger import Ledger
from .questions import build_questions
from .recipe import Recipe, load_recipe

# What one stream of a hosted model takes: seconds to the first token, and tokens a second, (fast, slow).
_FIRST_TOKEN_S, _TOKENS_PER_S = (0.4, 2.0), (120.0, 25.0)
# What this client itself can send on one core, in requests a second.
_CLIENT_RATE = 1000.0
# Within what time a batch ends; most end long before.
_BATCH_S = 86_400.0
# So many answered requests say better than a rule of thumb how long one takes.
_ENOUGH_ANSWERED = 50


@dataclass(frozen=True)
class Line:
    """One kind of request of one entry; counts and tokens are totals, (low, high)."""

    entry: str
    what: str
    who: str
    requests: tuple[int, int]
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int]


@dataclass(frozen=True)
class Quote:
    """What is asked of the teacher in all: (low, high) each; the student's own requests are among `lines` alone.

    `money` is None without prices; `answered` requests and their `spent` money are in the ledger already, and part of
    the quote.
    """

    lines: tuple[Line, ...]
    requests: tuple[int, int]
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int]
    money: tuple[float, float] | None
    seconds: tuple[float, float]
    answered: int
    spent: float

    def line(self) -> str:
        """The quote in one line."""
        tokens = tuple(p + c for p, c in zip(self.prompt_tokens, self.completion_tokens, strict=True))
        said = f"quote: {span(self.requests)} requests, {span(tokens)} tokens"
        own = [line.requests for line in self.lines if line.who == "student"]
        if own:
            said += f" (and {span((sum(low for low, _ in own), sum(high for _, high in own)))} requests to the student)"
        said += f", cost {span(self.money)}" if self.money else ""
        fast, slow = (duration(seconds) for seconds in self.seconds)
        said += f", {fast}" if fast == slow else f", {fast} to {slow}"
        return said + (f"; {self.answered:,} of them are answered already" if self.answered else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plans_of(recipe: Recipe, questions: Sequence[Question], collected: Path) -> dict[str, list[Planned]]:
    """The kinds of request of each entry.

    Raises:
        UserError: an entry names a skill or a file that is not there.
    """
    context = context_of(recipe, questions, collected, None, recipe.student_endpoint)
    return {entry.entry: METHODS[entry.method].plan(entry, context) for entry in entries_of(recipe)}


def quote_of(recipe: Recipe, plans: Mapping[str, Sequence[Planned]], collected: Path) -> Quote:
    """What the recipe's entries will ask for by their plans; sends nothing. `collected` may hold an earlier ledger.

    Tokens are counted by rule of thumb (words and marks), completions between what teachers usually write and the
    recipe's limit.
    """
    lines: list[Line] = []
    for entry in entries_of(recipe):
        limit = entry.max_tokens or recipe.teacher.max_tokens
        lines += [_line(entry.entry, planned, limit) for planned in plans[entry.entry]]
    asked = [line for line in lines if line.who == "teacher"]
    totals = {name: _sum(asked, name) for name in ("requests", "prompt_tokens", "completion_tokens")}
    answered, spent, latency = _known(collected)
    return Quote(
        tuple(lines),
        **totals,
        money=_money(recipe, totals["prompt_tokens"], totals["completion_tokens"]),
        seconds=_seconds(recipe, totals, latency),
        answered=answered,
        spent=spent,
    )


def quote_recipe(recipe_path: Path, runs: Path, data: Path | None = None) -> dict[str, Any]:
    """The quote of a recipe, shown as a table on stderr; returns it JSON-ready.

    Raises:
        UserError: the recipe, or a file that it names, is missing or broken.
    """
    recipe = load_recipe(recipe_path, data)
    collected = runs / recipe.name / "collect"
    quote = quote_of(recipe, plans_of(recipe, build_questions(recipe), collected), collected)
    show_quote(quote, Console(stderr=True))
    return quote.to_dict()


def show_quote(quote: Quote, console: Console) -> None:
    """The quote as a table."""
    table = Table("entry", "what", "asked", "requests", "prompt tokens", "completion tokens", title="quote")
    for line in quote.lines:
        counts = (span(line.requests), span(line.prompt_tokens), span(line.completion_tokens))
        table.add_row(line.entry, line.what, line.who, *counts)
    console.print(table)
    console.print(quote.line())


def span(values: Sequence[float] | None) -> str:
    """ "12", "12 to 40", "3.9M to 4.2M"."""
    if values is None:
        return ""
    low, high = (_short(value) for value in values)
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"


def duration(seconds: float) -> str:
    """ "42 s", "7 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(entry: str, planned: Planned, limit: int) -> Line:
    low, high = planned.requests
    prompt, completion = planned.prompt_tokens, tuple(min(tokens, limit) for tokens in planned.completion_tokens)
    return Line(
        entry,
        planned.what,
        planned.who,
        planned.requests,
        (round(low * prompt[0]), math.ceil(high * prompt[1])),
        (round(low * completion[0]), math.ceil(high * completion[1])),
    )


def _sum(lines: Sequence[Line], name: str) -> tuple[int, int]:
    pairs = [getattr(line, name) for line in lines]
    return sum(low for low, _ in pairs), sum(high for _, high in pairs)


def _money(recipe: Recipe, prompt: tuple[int, int], completion: tuple[int, int]) -> tuple[float, float] | None:
    teacher = recipe.teacher
    if teacher.price_in is None or teacher.price_out is None:
        return None
    share = teacher.batch_price if teacher.mode == "batch" else 1.0
    low, high = (
        share * (tokens_in * teacher.price_in + tokens_out * teacher.price_out) / 1e6
        for tokens_in, tokens_out in zip(prompt, completion, strict=True)
    )
    return low, high


def _seconds(recipe: Recipe, totals: dict[str, tuple[int, int]], latency: float | None) -> tuple[float, float]:
    """Bounded by the latency of a request, the recipe's own limits, and what a client can send."""
    teacher = recipe.teacher
    if teacher.mode == "batch":
        batch_s = teacher.embedded.batch_latency_s if teacher.base_url in LOCAL else _BATCH_S
        low, high = (requests / _CLIENT_RATE for requests in totals["requests"])
        return low, high + batch_s
    found = []
    for at in (0, 1):
        requests = totals["requests"][at]
        completion = totals["completion_tokens"][at]
        tokens = totals["prompt_tokens"][at] + completion
        if latency is None and teacher.base_url in ("embedded", "replay"):
            latency = teacher.embedded.latency_ms / 1000
        work = requests * _FIRST_TOKEN_S[at] + completion / _TOKENS_PER_S[at] if latency is None else requests * latency
        bounds = [work / teacher.concurrency, requests / _CLIENT_RATE]
        bounds += [60 * requests / teacher.requests_per_minute] if teacher.requests_per_minute else []
        bounds += [60 * tokens / teacher.tokens_per_minute] if teacher.tokens_per_minute else []
        found.append(max(bounds))
    return found[0], found[1]


def _known(collected: Path) -> tuple[int, float, float | None]:
    """What the ledger of an earlier run says: requests answered, money spent, seconds an answer took."""
    path = collected / "ledger.sqlite"
    if not path.is_file():
        return 0, 0.0, None
    answered, spent, latency, timed = 0, 0.0, 0.0, 0
    with Ledger(path, readonly=True) as ledger:
        for row in ledger.rows():
            spent += row.price or 0.0
            answered += row.state == "done"
            # What a batch answered has none.
            if row.state == "done" and row.latency_s is not None:
                timed += 1
                latency += row.latency_s
    return answered, spent, latency / timed if timed >= _ENOUGH_ANSWERED else None
