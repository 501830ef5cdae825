"""When the next request may go out: as many at once as the server bears, and no more a minute than it allows.

The number at once follows TCP's congestion control (Jacobson 1988; RFC 5681): slow start up to the first sign of
overload, a halving at most once a round trip, then a rise in small steps. A refusal comes back at once, long before
the answers of requests that are accepted; so slow start also doubles by the clock, and does not need minutes to find a
thousand at once where an answer takes seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Literal

from aiolimiter import AsyncLimiter

Outcome = Literal["answered", "overloaded", "timed_out", "failed"]
_START = 16
# Slow start doubles once in this time while requests wait, and as fast as answers come in.
_DOUBLING_S = 0.1
# Behind the first halving, the limit rises by this share of where that came in a round trip.
_STEP = 1 / 8
# One request that hangs is a fault; this share of the last ones, weighted by age, is a server that is too busy.
_TIMED_OUT_SHARE, _WINDOW = 0.25, 16
# Requests a minute are let through in portions of so many seconds' worth: the timers of an event loop are no finer.
_PORTION_S = 0.05
# What a guess of tokens keeps of what it knew, with every answer.
_KEPT = 0.95


class Pace:
    """The pace of one client, up to `ceiling` requests at once.

    `limit` are the requests at once that it allows now, `flying` those on their way, `waiting` those held back.
    """

    def __init__(
        self, ceiling: int, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> None:
        self.ceiling = ceiling
        self.flying = 0
        self._limit = float(min(_START, ceiling))
        self._threshold = float("inf")
        self._held = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._cut_at = self._resume_at = float("-inf")
        self._answered = 0
        self._timed_out = 0.0
        self._ramp: asyncio.TimerHandle | None = None
        self._requests = _even(requests_per_minute, _PORTION_S) if requests_per_minute else None
        self._tokens = _TokenPace(tokens_per_minute) if tokens_per_minute else None

    @property
    def limit(self) -> int:
        """Requests at once that it allows now."""
        return int(self._limit)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn, for the minute's allowance, or for the end of a pause."""
        return len(self._queue) + self._held - self.flying

    async def enter(self, tokens: float = 0.0, *, again: bool = False) -> float:
        """Wait for a request's turn; gives the time at which it goes out, which `leave` wants back.

        Args:
            tokens: how many it will probably use, prompt and completion.
            again: it was sent before, and goes ahead of those that never were.
        """
        loop = asyncio.get_running_loop()
        if self._held >= self.limit or self._queue:
            await self._turn(loop, again)
        else:
            self._held += 1
        try:
            if self._requests is not None:
                await self._requests.acquire()
            if self._tokens is not None:
                await self._tokens.acquire(tokens)
            while (pause := self._resume_at - loop.time()) > 0:
                await asyncio.sleep(pause)
        except BaseException:
            self._release()
            raise
        self.flying += 1
        return loop.time()

    def leave(self, entered: float, outcome: Outcome, expected: float = 0.0, used: float | None = None) -> bool:
        """A request that `enter` let out at `entered` has come to its end; `used` are the tokens that it took.

        Returns whether that lowered the limit.
        """
        cut = False
        busy = self.flying >= self._limit / 2
        if outcome != "failed":
            self._timed_out += ((outcome == "timed_out") - self._timed_out) / _WINDOW
        if outcome == "overloaded" or (outcome == "timed_out" and self._timed_out > _TIMED_OUT_SHARE):
            cut = self._cut(entered)
        elif outcome == "answered":
            self._answered += entered >= self._cut_at
            if busy:
                rise = 1.0 if self._limit < self._threshold else max(1.0, self._threshold * _STEP) / self._limit
                self._limit = min(float(self.ceiling), self._limit + rise)
        self.flying -= 1
        if self._tokens is not None and used is not None:
            self._tokens.correct(used - expected)
        self._release()
        return cut

    def pause(self, seconds: float) -> None:
        """Let nothing new out for so long: the server asked for it."""
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + seconds)

    def close(self) -> None:
        """Let go of its timer."""
        if self._ramp is not None:
            self._ramp.cancel()

    def _cut(self, entered: float) -> bool:
        # What went out before the last cut says nothing about the limit since.
        if entered < self._cut_at:
            return False
        fresh = self._answered >= self._limit or self._threshold == float("inf")
        self._cut_at, self._answered = asyncio.get_running_loop().time(), 0
        self._limit = max(1.0, min(self._limit, float(self.flying)) / 2)
        # Halvings without a round trip of answers between them are one event, an outage for example: behind it the
        # limit comes back fast to where it was.
        if fresh:
            self._threshold = self._limit
        return True

    async def _turn(self, loop: asyncio.AbstractEventLoop, again: bool) -> None:
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.appendleft(turn) if again else self._queue.append(turn)
        if self._ramp is None and self._threshold == float("inf"):
            self._ramp = loop.call_later(_DOUBLING_S, self._double)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # It may have been passed over already.
                with suppress(ValueError):
                    self._queue.remove(turn)
            else:
                self._release()
            raise

    def _double(self) -> None:
        self._ramp = None
        if self._threshold != float("inf") or self._limit >= self.ceiling:
            return
        if self._queue and self.flying >= self._limit / 2:
            self._limit = min(float(self.ceiling), self._limit * 2)
            self._wake()
        if self._queue:
            self._ramp = asyncio.get_running_loop().call_later(_DOUBLING_S, self._double)

    def _release(self) -> None:
        self._held -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._held < self.limit:
            turn = self._queue.popleft()
            if not turn.done():
                self._held += 1
                turn.set_result(None)


class _TokenPace:
    """Tokens a minute, spread evenly; what was expected wrongly is made up for by those that follow."""

    def __init__(self, tokens_per_minute: int) -> None:
        self._bucket = _even(tokens_per_minute, 1.0)
        self._first_come = asyncio.Lock()
        self._owed = 0.0

    async def acquire(self, tokens: float) -> None:
        # The limiter lets small amounts pass by large ones, and none that is larger than its bucket.
        async with self._first_come:
            owed, self._owed = self._owed + tokens, 0.0
            if owed < 0:
                self._owed = owed
            while owed > 0:
                portion = min(owed, self._bucket.max_rate)
                await self._bucket.acquire(portion)
                owed -= portion

    def correct(self, more: float) -> None:
        self._owed += more


def _even(per_minute: int, portion_s: float) -> AsyncLimiter:
    """A limiter that spreads: a bucket of a whole minute's worth would let twice as many through at first."""
    most = max(1.0, per_minute * portion_s / 60)
    return AsyncLimiter(most, most * 60 / per_minute)


class TokenGuess:
    """How many tokens a request will probably use: its prompt by rule of thumb, and the usual completion.

    Both are corrected by what the teacher reports, of late more than of old.
    """

    def __init__(self) -> None:
        self._counted = self._reported = 1.0
        self._completion: float | None = None

    def of(self, counted: int, max_tokens: int) -> float:
        """Tokens of a prompt of `counted` words and marks, and of its completion."""
        completion = max_tokens if self._completion is None else min(self._completion, max_tokens)
        return counted * self._reported / self._counted + completion

    def learn(self, counted: int, prompt: int, completion: int) -> None:
        """A teacher reported so many tokens, for a prompt of `counted`."""
        self._counted = _KEPT * self._counted + counted
        self._reported = _KEPT * self._reported + prompt
        usual = completion if self._completion is None else self._completion
        self._completion = _KEPT * usual + (1 - _KEPT) * completion
