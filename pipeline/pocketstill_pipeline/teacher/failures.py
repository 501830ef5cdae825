"""What went wrong with an attempt at a request, and whether and when another one makes sense."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import aiohttp
import httpx2
import openai

from .pacing import Outcome
from .protocol import NOT_RECORDED

# What an attempt can raise; what aiohttp finds wrong with a response itself comes as it is.
ERRORS = (openai.APIError, httpx2.HTTPError, aiohttp.ClientError)
_AGAIN = frozenset({408, 409, 425, 429})
# 529 is what some servers say for 503.
_OVERLOADED = frozenset({429, 503, 529})
_FIRST_BACKOFF_S, _MOST_BACKOFF_S, _JITTER = 0.5, 8.0, 0.25
# No connection was made at all. The class of the error does not tell: over aiohttp a refused connection, and one that
# the server closed without an answer, are both a ConnectTimeout.
_NEVER_REACHED = frozenset(
    {
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ConnectionTimeoutError",
        "ConnectError",
        "ConnectionRefusedError",
    }
)
_NO_ANSWER = frozenset({"SocketTimeoutError", "ReadTimeout"})


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed.

    `again`: another attempt may succeed, after `wait_s` seconds where the server says so. `unreached`: nobody answered
    there. `alone`: it says nothing about other requests. `refused`: it came too soon, and nothing is wrong with it.
    """

    said: str
    outcome: Outcome = "failed"
    again: bool = True
    wait_s: float | None = None
    unreached: bool = False
    alone: bool = False
    refused: bool = False


def failure_of(error: Exception) -> Failure:
    """What an exception of `ERRORS` means."""
    if isinstance(error, openai.APIStatusError):
        status, headers = error.status_code, error.response.headers
        again = status in _AGAIN or status >= 500
        if (told := headers.get("x-should-retry")) in ("true", "false"):
            again = told == "true"
        return Failure(
            reason(error),
            "overloaded" if status in _OVERLOADED else "failed",
            again,
            # To come again at once says nothing about when: so a clock does that is behind ours.
            retry_after_s(headers) or None,
            alone=error.code == NOT_RECORDED,
            refused=status == 429,
        )
    if timed_out(error):
        return Failure(reason(error), "timed_out")
    return Failure(reason(error), unreached=any(type(link).__name__ in _NEVER_REACHED for link in _chain(error)))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: Retry-After-Ms, or Retry-After as a number or a date (RFC 9110, 10.2.3)."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / divisor
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None


def backoff_s(attempt: int, wait_s: float | None) -> float:
    """Seconds until the attempt that follows attempt number `attempt`, from 1: doubling, or what the server asked for.

    Spread at random, so that those that failed together do not all come back together.
    """
    if wait_s is not None:
        return wait_s * (1 + _JITTER * random.random())
    return min(_FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 16), _MOST_BACKOFF_S) * (1 - _JITTER * random.random())


def reason(error: Exception) -> str:
    """The error in one line, for the ledger."""
    if isinstance(error, openai.APIStatusError):
        body = error.body
        said = body.get("message") if isinstance(body, dict) else None
        return f"HTTP {error.status_code}: {' '.join(str(said or error.message).split())[:300]}"
    if timed_out(error):
        return "no answer in time"
    return f"connection: {cause(error)}"


def cause(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line."""
    *_, last = _chain(error)
    return " ".join(str(last).split())[:200] or type(last).__name__


def timed_out(error: BaseException) -> bool:
    """Whether a request was sent and no answer came; what never reached the teacher is no time-out."""
    return any(type(link).__name__ in _NO_ANSWER for link in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
