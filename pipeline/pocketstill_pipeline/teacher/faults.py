"""What a hosted teacher does to those who ask it, on demand: faults at a given rate, and limits with their headers."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pocketstill.errors import UserError

from . import FAULT_KINDS, TeacherConfig
from .protocol import ProtocolError

_DIGEST_BYTES = 12


def digest_of(body: bytes, sample: str | None) -> bytes:
    """What two requests have in common that must be answered alike."""
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES, key=(sample or "").encode()[:64]).digest()


class Served:
    """Draws the faults, and counts what was served.

    A fault is drawn from the seed, the request and how often that request has come: so it strikes the same
    requests in every run, in whatever order they come, and a request that is asked again may succeed.

    Raises:
        UserError: a kind of fault is unknown.
    """

    def __init__(self, config: TeacherConfig) -> None:
        unknown = sorted(set(config.fault_kinds) - set(FAULT_KINDS))
        if unknown:
            raise UserError(f"fault kind {unknown[0]!r} is unknown; choose from {', '.join(FAULT_KINDS)}")
        self._config = config
        self._attempts: Counter[bytes] = Counter()
        self._answers: Counter[bytes] = Counter()
        self._again = 0
        self._faults: Counter[str] = Counter()
        self._limited: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()

    def draw(self, digest: bytes, possible: Sequence[str] = FAULT_KINDS) -> str | None:
        """Which of the `possible` faults strikes this attempt at a request; None for none. Counts the attempt."""
        kinds = [kind for kind in self._config.fault_kinds if kind in possible]
        if not self._config.faults or not kinds:
            return None
        self._attempts[digest] += 1
        rng = random.Random(f"{self._config.seed}|{digest.hex()}|{self._attempts[digest]}")
        if rng.random() >= self._config.faults:
            return None
        kind = rng.choice(kinds)
        self._faults[kind] += 1
        return kind

    def limited(self, by: str) -> None:
        """Count a request that a limit refused."""
        self._limited[by] += 1

    def answered(self, digest: bytes) -> None:
        """Count a request that is answered whole."""
        self._answers[digest] += 1
        self._again += self._answers[digest] == 2

    def stats(self) -> dict[str, Any]:
        """What GET /stats says: `requests` answered, and of how many of them the same body was answered before."""
        return {
            "requests": self._answers.total(),
            "distinct": len(self._answers),
            "answered_again": self._again,
            "faults": {kind: self._faults[kind] for kind in FAULT_KINDS},
            "limited": {by: self._limited[by] for by in ("requests", "tokens", "concurrency")},
            "batches": dict(self.batches),
        }


@dataclass
class _Bucket:
    """So many a minute: full at first, and filled evenly."""

    limit: int
    clock: Callable[[], float]
    level: float = 0.0
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level, self.at = float(self.limit), self.clock()

    def wait_s(self, amount: float) -> float:
        """Seconds until so much can be taken; 0 if it can be now."""
        now = self.clock()
        self.level = min(float(self.limit), self.level + (now - self.at) * self.limit / 60)
        self.at = now
        return max(0.0, (amount - self.level) * 60 / self.limit)

    def headers(self, name: str) -> dict[str, str]:
        reset_s = (self.limit - self.level) * 60 / self.limit
        return {
            f"x-ratelimit-limit-{name}": str(self.limit),
            f"x-ratelimit-remaining-{name}": str(max(0, int(self.level))),
            f"x-ratelimit-reset-{name}": _duration(reset_s),
        }


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3f}s" if minutes else f"{rest:.3f}s"


def too_many(by: str, said: str, wait_s: float, headers: dict[str, str] | None = None) -> ProtocolError:
    """A refusal with HTTP 429 that says when to come again, in seconds and in milliseconds."""
    again = {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    said = f"{said} Please try again in {_duration(wait_s)}."
    return ProtocolError(429, said, code="rate_limit_exceeded", kind=by, headers=again | (headers or {}))


class Limits:
    """Requests and tokens a minute, and requests at once, as OpenAI counts and announces them.

    A request counts its prompt and the most that it may be answered, whatever it is answered then.
    """

    def __init__(self, config: TeacherConfig, served: Served, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._served = config, served
        given = {"requests": config.requests_per_minute, "tokens": config.tokens_per_minute}
        self._buckets = {name: _Bucket(limit, clock) for name, limit in given.items() if limit is not None}
        self._at_once = 0

    @property
    def any(self) -> bool:
        return bool(self._buckets) or self._config.max_concurrency is not None

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit` headers of an answer."""
        return {name: value for by, bucket in self._buckets.items() for name, value in bucket.headers(by).items()}

    @contextmanager
    def admitted(self, tokens: int) -> Iterator[None]:
        """For as long as a request of so many tokens is answered.

        Raises:
            ProtocolError: 429, when it is one too many.
        """
        most = self._config.max_concurrency
        if most is not None and self._at_once >= most:
            self._served.limited("concurrency")
            said = f"Too many requests at once: limit {most}."
            raise too_many("concurrency", said, self._config.retry_after_s, self.headers())
        amounts = {"requests": 1, "tokens": tokens}
        for by, bucket in self._buckets.items():
            wait_s = bucket.wait_s(amounts[by])
            if wait_s > 0:
                self._served.limited(by)
                used = f"Limit {bucket.limit}, Used {bucket.limit - int(bucket.level)}, Requested {amounts[by]}."
                said = f"Rate limit reached for {self._config.model} on {by} per min: {used}"
                raise too_many(by, said, wait_s, self.headers())
        for by, bucket in self._buckets.items():
            bucket.level -= amounts[by]
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1
