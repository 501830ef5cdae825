"""What a choice is made of: the tolerance, the measured variants, and the rule that picks one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pocketstill.bundle import EngineName, Variant
from pocketstill_export.choice.accuracy import Loss
from pocketstill_export.choice.pareto import Span, front
from pocketstill_export.choice.sensitivity import Gain
from pocketstill_export.errors import ExportError
from pocketstill_export.parity.logits import LogitsCheck

Objective = Literal["smallest", "fastest"]
MIXED = "gguf-mixed"
MIXED_FILE = "model-mixed.gguf"


@dataclass(frozen=True)
class Tolerance:
    """How far from the checkpoint a variant may be; None sets no limit, and one at least must be set.

    `kl_mean` is in nats a token, `top1` the least share of tokens with the same most likely one, and
    `accuracy_points` the percentage points of right answers that may be lost, over all questions of the suite.
    """

    kl_mean: float | None = None
    top1: float | None = None
    accuracy_points: float | None = None

    def __post_init__(self) -> None:
        limits = (self.kl_mean, self.top1, self.accuracy_points)
        if all(limit is None for limit in limits):
            raise ExportError("the tolerance is empty; give kl_mean, top1 or accuracy_points")
        if any(limit is not None and not (math.isfinite(limit) and limit >= 0) for limit in limits):
            raise ExportError(f"the tolerance is {self}; each limit must be a number from 0 up")
        if self.top1 is not None and self.top1 > 1:
            raise ExportError(f"the tolerance's top1 is {self.top1:g}; it is a share, give at most 1")

    def excess(self, check: LogitsCheck, loss: Loss | None) -> float:
        """By what factor the worst figure, its error against it, uses up its limit; at most 1 is within."""
        used = []
        if self.kl_mean is not None:
            used.append(_ratio(check.kl_mean + check.kl_mean_error, self.kl_mean))
        if self.top1 is not None:
            used.append(_ratio(1 - check.top1 + check.top1_error, 1 - self.top1))
        if self.accuracy_points is not None and loss is not None:
            used.append(_ratio(100 * loss.high, self.accuracy_points))
        return max(used, default=0.0)

    def said(self) -> str:
        """The limits in words, as they are given."""
        limits = {"kl_mean": self.kl_mean, "top1": self.top1, "accuracy_points": self.accuracy_points}
        return ", ".join(f"{name} {limit:g}" for name, limit in limits.items() if limit is not None)

    @property
    def on_logits(self) -> bool:
        """Whether it limits anything but accuracy."""
        return self.kl_mean is not None or self.top1 is not None


@dataclass(frozen=True)
class Candidate:
    """One variant, measured. KL in nats a token over `tokens` tokens; `_error` is the standard error of a figure.

    `decode_tok_s` is a median with its quartiles `decode_low` and `decode_high`. `accuracy` is None without a
    suite, `skills` is the same by skill. `tensor_types` has regular expressions over tensor names with the type of
    what they find, for the mixed variant alone. A front is of variants that none is clearly better than: in bytes
    and KL, in decode speed and KL.
    """

    name: str
    engine: EngineName
    bytes: int
    tokens: int
    kl_mean: float
    kl_mean_error: float
    kl_p999: float
    kl_max: float
    top1: float
    top1_error: float
    decode_tok_s: float
    decode_low: float
    decode_high: float
    accuracy: Loss | None
    skills: dict[str, Loss]
    tensor_types: dict[str, str]
    within: bool
    excess: float
    on_size_front: bool = False
    on_speed_front: bool = False

    @property
    def on_front(self) -> bool:
        """Whether it is on one of the two fronts."""
        return self.on_size_front or self.on_speed_front


@dataclass(frozen=True)
class Searched:
    """The search for the mixed variant: what each group saves alone, the way taken, what it cost.

    `path` has a (bytes, mean KL, its error) for each raise, over texts that the candidates are not measured on.
    `kept` says whether it came to a variant, `over` whether its time was up.
    """

    base: str
    gains: tuple[Gain, ...]
    path: tuple[tuple[int, float, float], ...]
    trials: int
    seconds: float
    kept: bool
    over: bool


@dataclass(frozen=True)
class Choice:
    """What was measured and what was chosen; `chosen` is None where nothing fits, and `said` is it in one line.

    `mixed` is the new variant, in the folder but in no index yet.
    """

    objective: Objective
    tolerance: Tolerance
    max_bytes: int | None
    chosen: str | None
    said: str
    candidates: tuple[Candidate, ...]
    mixed: Variant | None
    searched: Searched | None
    parameters: int
    threads: int | None
    repetitions: int
    notes: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    def required(self) -> Candidate:
        """The chosen candidate.

        Raises:
            ExportError: nothing fits; the line names the nearest.
        """
        for candidate in self.candidates:
            if candidate.name == self.chosen:
                return candidate
        raise ExportError(self.said)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a figure that is no number is None."""
        found: dict[str, Any] = _plain(asdict(self))
        for row, candidate in zip(found["candidates"], self.candidates, strict=True):
            row["on_front"] = candidate.on_front
        return found


def with_fronts(rows: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates, each told whether it is on the front of size and KL, and on that of speed and KL."""
    loss = {row.name: Span.around(row.kl_mean, row.kl_mean_error) for row in rows}
    size = front({row.name: (Span.exact(row.bytes), loss[row.name]) for row in rows})
    # Of a span less is better, so speed is seconds a token.
    speed = front(
        {
            row.name: (Span(1 / row.decode_tok_s, 1 / row.decode_high, 1 / row.decode_low), loss[row.name])
            for row in rows
            if row.decode_tok_s
        }
    )
    return [replace(row, on_size_front=row.name in size, on_speed_front=row.name in speed) for row in rows]


def pick(
    rows: Sequence[Candidate], objective: Objective, tolerance: Tolerance, max_bytes: int | None
) -> tuple[str | None, str]:
    """The name of the best candidate within the tolerance and `max_bytes`, None where there is none; and why."""
    small = [row for row in rows if max_bytes is None or row.bytes <= max_bytes]
    fit = [row for row in small if row.within]
    if not small:
        least = min(rows, key=lambda row: row.bytes)
        return None, f"no variant has at most {max_bytes:,} bytes: the smallest is {least.name} with {least.bytes:,}"
    if not fit:
        nearest = min(small, key=lambda row: (row.excess, row.bytes))
        budget = "" if max_bytes is None else f" in {max_bytes:,} bytes"
        return None, (
            f"nothing{budget} is within {tolerance.said()}: the nearest is {_figures(nearest)}, which "
            f"{_meets(nearest, tolerance).said()} would let through"
        )
    if objective == "smallest":
        best = min(fit, key=lambda row: (row.bytes, row.kl_mean, row.name))
    else:
        first = max(fit, key=lambda row: row.decode_tok_s)
        alike = [row for row in fit if row.decode_high >= first.decode_low]
        best = min(alike, key=lambda row: (row.bytes, row.kl_mean, row.name))
    count = f"{len(fit)} of {len(rows)} variants that are" if len(rows) > 1 else "one variant that is"
    return best.name, f"{_figures(best)} is the {objective} of the {count} within {tolerance.said()}"


def _figures(row: Candidate) -> str:
    said = f"{row.name} ({row.bytes / 2**20:.2f} MiB, {row.decode_tok_s:,.0f} tokens/s, KL {row.kl_mean:.2g} ± "
    said += f"{row.kl_mean_error:.1g}, top-1 {row.top1:.2%}"
    return said + (f", {100 * row.accuracy.lost:+.1f} points lost)" if row.accuracy else ")")


def _meets(row: Candidate, tolerance: Tolerance) -> Tolerance:
    """The tolerance of the same figures that the candidate is within, rounded to its safe side."""
    return Tolerance(
        None if tolerance.kl_mean is None else _up(row.kl_mean + row.kl_mean_error),
        None if tolerance.top1 is None else max(0.0, math.floor(1e4 * (row.top1 - row.top1_error)) / 1e4),
        None
        if tolerance.accuracy_points is None or row.accuracy is None
        else max(0.0, math.ceil(1000 * row.accuracy.high) / 10),
    )


def _up(value: float) -> float:
    """The next number of two digits that is not below `value`."""
    if not 0 < value < math.inf:
        return value if value == 0 else 1e9
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.2g}")


def _ratio(value: float, limit: float) -> float:
    if value <= 0:
        return 0.0
    return value / limit if limit else math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
