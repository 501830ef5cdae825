"""Asks a teacher by its OpenAI-compatible URL; every answer is in the ledger before it is used."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import openai

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask, Reply
from pocketstill_pipeline.compact import slim
from pocketstill_pipeline.ledger import Ledger, Row
from pocketstill_pipeline.recipe import Teacher

from .failures import ERRORS, Failure, backoff_s, cause, failure_of, reason
from .line import Line, body_of, connect, line_of
from .pacing import Outcome, Pace, TokenGuess
from .protocol import NOT_RECORDED, SAMPLE_HEADER, count_tokens
from .replies import reply_of, stored_reply, unusable, usage_of
from .spending import Spending, prices_of, worst_of

__all__ = ["Tally", "TeacherClient", "body_of", "connect", "connected"]

# So many requests in a row without one answer mean that the teacher is at fault, not the requests.
_MOST_FAILURES_IN_A_ROW = 25
_MOST_UNREACHED_IN_A_ROW = 3
_PROBE_TIMEOUT_S = 10.0
# A server that asks for more than this is not waited for: somebody has to know of it.
_MOST_RETRY_AFTER_S = 600.0
# So many refusals (HTTP 429) count as one attempt: where a minute's requests are limited, each waits for its turn.
_REFUSALS_AN_ATTEMPT = 10
# How long requests on their way may take to come in when a run ends early: they are paid for.
_GRACE_S = 10.0


@dataclass
class Tally:
    """What a run has sent so far, and what it is doing.

    `requests` have come to their end, `failed` of them without an answer; `retried` counts further attempts at them,
    `rate_limited` the answers with HTTP 429. Tokens are those that the teacher reported; `price` is in its money.
    `in_flight` requests are on their way, of the `limit` that the pace allows now; `waiting` are held back by it.
    """

    requests: int = 0
    failed: int = 0
    retried: int = 0
    rate_limited: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    price: float = 0.0
    in_flight: int = 0
    limit: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class _Attempt:
    """One attempt's result: a usable `body`, or the `failure`; tokens as they were reported."""

    latency_s: float
    text: str | None = None
    body: Any = None
    failure: Failure | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass
class TeacherClient:
    """A connected client; make one with `connected`."""

    teacher: Teacher
    base_url: str
    ledger: Ledger
    line: Line
    pace: Pace
    spending: Spending | None = None
    tally: Tally = field(default_factory=Tally)
    _guess: TokenGuess | None = None
    _probed: asyncio.Task[None] | None = None
    _asked: dict[str, asyncio.Task[Reply]] = field(default_factory=dict)
    _flying: set[str] = field(default_factory=set)
    _closing: bool = False
    _hopeless: UserError | None = None
    _refusals: int = 0
    _failures_in_a_row: int = 0
    _unreached_in_a_row: int = 0

    async def ask(self, ask: Ask) -> Reply:
        """Answer from the ledger if it can, else from the teacher; a request that fails alone is a Reply too.

        Who stops waiting for it does not stop the request: it may be paid for already.

        Raises:
            UserError: the teacher cannot be reached, refuses the key or does not know the model; the budget is
                spent; or the ledger cannot be written.
        """
        if ask.key not in self._asked:
            known = stored_reply(self.ledger.get(ask.key))
            if known is not None and known.error is None:
                self.tally.from_cache += 1
                return known
            task: asyncio.Task[Reply] = asyncio.create_task(self._send(ask))
            task.add_done_callback(partial(self._ended, ask.key))
            self._asked[ask.key] = task
        return await asyncio.shield(self._asked[ask.key])

    def check_reached(self) -> None:
        """Raise the UserError of a dead teacher if the last requests of a run did not reach it."""
        if self._unreached_in_a_row:
            raise UserError(
                f"teacher {self.base_url}: the last requests did not reach it; check it and run again, "
                "what was answered is kept"
            )

    async def close(self) -> None:
        """Take in what is on its way, for some seconds, and drop what is not."""
        self._closing = True
        for key, task in self._asked.items():
            if key not in self._flying:
                task.cancel()
        left = [*self._asked.values(), *([self._probed] if self._probed else [])]
        if left:
            _, late = await asyncio.wait(left, timeout=_GRACE_S if self._flying else 0)
            for one in late:
                one.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        self.pace.close()

    def _ended(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._asked[key]
        # Looked at, so that the loop does not complain of an exception that nobody waited for.
        if not task.cancelled():
            task.exception()

    async def _send(self, ask: Ask) -> Reply:
        """All attempts at a request. What an attempt cost is recorded with it, whether it was of use or not."""
        if self._probed is None:
            self._probed = asyncio.ensure_future(self._probe())
        if not self._probed.done():
            await asyncio.shield(self._probed)
        self._probed.result()
        worst = worst_of(ask) if self.spending else None
        number = unrecorded = counted = 0
        while True:
            number += 1
            if self.spending and worst:
                await self.spending.reserve(worst)
            used: tuple[int | None, int | None] = (0, 0)
            try:
                attempt = await self._attempt(ask, again=number > 1)
                unrecorded += 1
                failure = attempt.failure
                if failure is None or attempt.prompt_tokens is not None:
                    used = (attempt.prompt_tokens, attempt.completion_tokens)
                counted += 1 if failure is not None and failure.refused else _REFUSALS_AN_ATTEMPT
                given_up = counted > self.teacher.retries * _REFUSALS_AN_ATTEMPT or self._closing
                last = failure is None or not failure.again or given_up
                if last or attempt.prompt_tokens is not None:
                    await self._record(ask, attempt, unrecorded)
                    unrecorded = 0
            finally:
                if self.spending and worst:
                    self.spending.settle(worst, *used)
            if failure is None:
                self.tally.requests += 1
                self._failures_in_a_row = 0
                return reply_of(ask.key, attempt.body)
            if last:
                self._note(failure)
                return Reply(ask.key, error=failure.said)
            self.tally.retried += 1
            await asyncio.sleep(backoff_s(number, failure.wait_s))

    async def _attempt(self, ask: Ask, *, again: bool) -> _Attempt:
        """Send a request once, when its turn comes.

        Raises:
            UserError: no other request has a chance either.
        """
        counted = sum(count_tokens(str(m.get("content") or "")) for m in ask.messages) if self._guess else 0
        expected = self._guess.of(counted, ask.max_tokens) if self._guess else 0.0
        entered = await self.pace.enter(expected, again=again)
        self._flying.add(ask.key)
        self._show()
        outcome: Outcome = "failed"
        used = failure = None
        started = time.perf_counter()
        try:
            if self._hopeless is not None:
                raise self._hopeless
            if not again:
                self.ledger.begin(ask.key, ask.json)
            body = json.dumps(body_of(self.base_url, ask), ensure_ascii=False).encode()
            content = await self.line.post(body, {SAMPLE_HEADER: str(ask.sample)})
            attempt = self._read(content, time.perf_counter() - started)
            outcome = "answered"
            if attempt.prompt_tokens is not None:
                used = attempt.prompt_tokens + (attempt.completion_tokens or 0)
                if self._guess:
                    self._guess.learn(counted, attempt.prompt_tokens, attempt.completion_tokens or 0)
            self._unreached_in_a_row = self._refusals = 0
            return attempt
        except ERRORS as error:
            failure = self._judge(error)
            outcome = failure.outcome
            return _Attempt(time.perf_counter() - started, failure=failure)
        finally:
            self._flying.discard(ask.key)
            lowered = self.pace.leave(entered, outcome, expected, used)
            if lowered and failure is not None and failure.wait_s is None:
                # It does not say for how long: then for longer each time, until it answers again.
                self._refusals += 1
                self.pace.pause(backoff_s(self._refusals, None))
            self._show()

    def _read(self, content: bytes, latency_s: float) -> _Attempt:
        text = content.decode(errors="replace")
        try:
            body = json.loads(text)
            error = unusable(body)
        except (ValueError, RecursionError):
            body, error = None, "the teacher's answer is not JSON"
        if error is None and slim(body):
            text = json.dumps(body, ensure_ascii=False)
        return _Attempt(latency_s, text, body, Failure(self._scrub(error)) if error else None, *usage_of(body))

    def _judge(self, error: Exception) -> Failure:
        if (fatal := self._fatal(error)) is not None:
            # Nor do those that wait for their turn go out.
            self._hopeless = fatal
            raise fatal from error
        failure = failure_of(error)
        self.tally.rate_limited += failure.refused
        if not failure.unreached:
            self._unreached_in_a_row = 0
        if failure.wait_s is not None:
            if failure.wait_s > _MOST_RETRY_AFTER_S:
                self._hopeless = UserError(
                    f"teacher {self.base_url}: asks to come again in {failure.wait_s / 60:.0f} minutes "
                    f"({self._scrub(failure.said)}); run again then, what was answered is kept"
                )
                raise self._hopeless from error
            self.pace.pause(failure.wait_s)
        return replace(failure, said=self._scrub(failure.said))

    async def _record(self, ask: Ask, attempt: _Attempt, attempts: int) -> None:
        prices, (prompt, completion) = prices_of(self.teacher), (attempt.prompt_tokens, attempt.completion_tokens)
        price = None if prices is None or prompt is None else prices.of(prompt, completion or 0)
        failure = attempt.failure
        row = Row(
            ask.key, "failed" if failure else "done", ask.json, attempt.text, prompt, completion, price,
            attempt.latency_s, attempts, failure.said if failure else None,
        )  # fmt: skip
        await self.ledger.finish(row)
        self.tally.prompt_tokens += prompt or 0
        self.tally.completion_tokens += completion or 0
        self.tally.price += price or 0.0

    def _note(self, failure: Failure) -> None:
        """Count a request that stays failed.

        Raises:
            UserError: so many did in a row that the teacher must be at fault.
        """
        self.tally.requests += 1
        self.tally.failed += 1
        if failure.unreached:
            self._unreached_in_a_row += 1
            if self._unreached_in_a_row >= min(_MOST_UNREACHED_IN_A_ROW, self.teacher.concurrency):
                raise self._unreachable(failure.said)
        if failure.alone:
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MOST_FAILURES_IN_A_ROW:
            raise UserError(
                f"teacher {self.base_url}: {self._failures_in_a_row} requests in a row failed, "
                f"the last one with: {failure.said}; mend that and run again, what was answered is kept"
            )

    def _fatal(self, error: Exception) -> UserError | None:
        if not isinstance(error, openai.APIStatusError):
            return None
        status, code = error.status_code, error.code
        where = f"teacher {self.base_url}"
        if status == 401:
            return UserError(
                f"{where}: the API key is refused (HTTP 401); "
                f"put a valid one into the environment variable {self.teacher.api_key_env}"
            )
        if status == 404 and code != NOT_RECORDED:
            said = self._scrub(reason(error))
            return UserError(f"{where}: {said}; check teacher.base_url (it ends in /v1 mostly) and teacher.model")
        if status in (402, 429) and (status == 402 or code == "insufficient_quota"):
            return UserError(
                f"{where}: the account has no quota left; add to it and run again, what was answered is kept"
            )
        return None

    async def _probe(self) -> None:
        """Find out at once, not after every retry, that nobody listens there or that the key is refused."""
        try:
            timeout = min(self.teacher.timeout_s, _PROBE_TIMEOUT_S)
            await self.line.api.with_options(timeout=timeout).models.with_raw_response.list()
        except ERRORS as error:
            if failure_of(error).unreached:
                raise self._unreachable(self._scrub(cause(error))) from error
            # Many servers have no list of models; only a refused key says something about what follows.
            if isinstance(error, openai.AuthenticationError) and (fatal := self._fatal(error)) is not None:
                raise fatal from error

    def _unreachable(self, said: str) -> UserError:
        return UserError(
            f"teacher {self.base_url}: nobody answers there ({said}); start it, or set "
            "teacher.base_url in the recipe; what was answered so far is kept"
        )

    def _scrub(self, text: str) -> str:
        key = self.line.api.api_key
        return text.replace(key, "***") if len(key) > 6 else text

    def _show(self) -> None:
        tally, pace = self.tally, self.pace
        tally.in_flight, tally.limit, tally.waiting = pace.flying, pace.limit, pace.waiting


@asynccontextmanager
async def connected(
    teacher: Teacher, base_url: str, ledger: Ledger, spending: Spending | None = None
) -> AsyncIterator[TeacherClient]:
    """A client of the teacher at `base_url`; `spending` is what it may cost.

    Raises:
        UserError: the URL is none or holds a password, or the key is none.
    """
    line = line_of(teacher, base_url)
    async with line.api:
        pace = Pace(teacher.concurrency, teacher.requests_per_minute, teacher.tokens_per_minute)
        guess = TokenGuess() if teacher.tokens_per_minute else None
        client = TeacherClient(teacher, base_url, ledger, line, pace, spending, _guess=guess)
        try:
            yield client
        finally:
            await client.close()
