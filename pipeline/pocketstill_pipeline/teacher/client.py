"""Asks a teacher by its OpenAI-compatible URL; every answer is in the ledger before it is used."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
from aiolimiter import AsyncLimiter

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask, Reply
from pocketstill_pipeline.ledger import Ledger, Row
from pocketstill_pipeline.recipe import Teacher

from .protocol import NOT_RECORDED, SAMPLE_HEADER

# So many requests in a row without one answer mean that the teacher is at fault, not the requests.
_MOST_FAILURES_IN_A_ROW = 25
_MOST_UNREACHED_IN_A_ROW = 3
_CONNECT_TIMEOUT_S = 20.0


@dataclass
class Tally:
    """What a run has sent so far. Tokens are those that the teacher reported; `price` is in its money."""

    requests: int = 0
    failed: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    price: float = 0.0


@dataclass
class TeacherClient:
    """A connected client; make one with `connected`."""

    teacher: Teacher
    base_url: str
    ledger: Ledger
    api: openai.AsyncOpenAI
    tally: Tally = field(default_factory=Tally)
    _limiter: AsyncLimiter | None = None
    _probed: asyncio.Task[None] | None = None
    _in_flight: dict[str, asyncio.Future[Reply]] = field(default_factory=dict)
    _failures_in_a_row: int = 0
    _unreached_in_a_row: int = 0

    async def ask(self, ask: Ask) -> Reply:
        """Answer from the ledger if it can, else from the teacher; a request that fails alone is a Reply too.

        Raises:
            UserError: the teacher cannot be reached, refuses the key or does not know the model; or the
                ledger cannot be written.
        """
        known = stored_reply(self.ledger.get(ask.key))
        if known is not None and known.error is None:
            self.tally.from_cache += 1
            return known
        twin = self._in_flight.get(ask.key)
        if twin is not None:
            return await asyncio.shield(twin)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._in_flight[ask.key] = future
        try:
            reply = await self._send(ask)
            future.set_result(reply)
            return reply
        except BaseException:
            future.cancel()
            raise
        finally:
            del self._in_flight[ask.key]

    async def _send(self, ask: Ask) -> Reply:
        if self._probed is None:
            self._probed = asyncio.ensure_future(self._probe())
        await self._probed
        if self._limiter is not None:
            await self._limiter.acquire()
        self.ledger.begin(ask.key, ask.json)
        started = time.perf_counter()
        try:
            raw = await self.api.chat.completions.with_raw_response.create(
                model=ask.model,
                messages=[],
                extra_headers={SAMPLE_HEADER: str(ask.sample)},
                # Given as `messages=`, they would be walked through again, at a third of the client's time.
                extra_body=_body(self.base_url, ask),
            )
        except openai.APIError as error:
            return await self._failed(ask, error, time.perf_counter() - started)
        row = self._row(ask, raw.text, time.perf_counter() - started, raw.retries_taken + 1)
        await self.ledger.finish(row)
        self._count(row)
        reply = stored_reply(row)
        assert reply is not None
        return Reply(reply.key, reply.text, reply.finish_reason, reply.error)

    def _row(self, ask: Ask, text: str, latency_s: float, attempts: int) -> Row:
        try:
            body = json.loads(text)
            error = _unusable(body)
        except (ValueError, RecursionError):
            body, error = {}, "the teacher's answer is not JSON"
        usage = body.get("usage") if isinstance(body, dict) else None
        tokens_in, tokens_out = (_tokens(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        return Row(
            ask.key, "failed" if error else "done", ask.json, text, tokens_in, tokens_out,
            price_of(self.teacher, tokens_in, tokens_out), latency_s, attempts, error,
        )  # fmt: skip

    def _count(self, row: Row) -> None:
        self.tally.requests += 1
        self.tally.prompt_tokens += row.prompt_tokens or 0
        self.tally.completion_tokens += row.completion_tokens or 0
        self.tally.price += row.price or 0.0
        if row.error is None:
            self._failures_in_a_row = self._unreached_in_a_row = 0
        else:
            self._note_failure(row.error)

    async def _failed(self, ask: Ask, error: openai.APIError, latency_s: float) -> Reply:
        fatal = self._fatal(error)
        if fatal is not None:
            raise fatal from error
        said = self._scrub(_reason(error))
        unreached = isinstance(error, openai.APIConnectionError) and not _timed_out(error)
        status = getattr(error, "status_code", None)
        retried = status is None or status in (408, 409, 429) or status >= 500
        attempts = self.teacher.retries + 1 if retried else 1
        row = Row(ask.key, "failed", ask.json, None, latency_s=latency_s, attempts=attempts, error=said)
        await self.ledger.finish(row)
        self.tally.requests += 1
        if unreached:
            self._unreached_in_a_row += 1
            if self._unreached_in_a_row >= min(_MOST_UNREACHED_IN_A_ROW, self.teacher.concurrency):
                raise self._unreachable(error) from error
        if getattr(error, "code", None) == NOT_RECORDED:
            self.tally.failed += 1
        else:
            self._note_failure(said)
        return Reply(ask.key, error=said)

    def _note_failure(self, said: str) -> None:
        self.tally.failed += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MOST_FAILURES_IN_A_ROW:
            raise UserError(
                f"teacher {self.base_url}: {self._failures_in_a_row} requests in a row failed, "
                f"the last one with: {said}; mend that and run again, what was answered is kept"
            )

    def _fatal(self, error: openai.APIError) -> UserError | None:
        status, code = getattr(error, "status_code", None), getattr(error, "code", None)
        where = f"teacher {self.base_url}"
        if status == 401:
            return UserError(
                f"{where}: the API key is refused (HTTP 401); "
                f"put a valid one into the environment variable {self.teacher.api_key_env}"
            )
        if status == 404 and code != NOT_RECORDED:
            said = self._scrub(_reason(error))
            return UserError(f"{where}: {said}; check teacher.base_url (it ends in /v1 mostly) and teacher.model")
        if status in (402, 429) and (status == 402 or code == "insufficient_quota"):
            return UserError(
                f"{where}: the account has no quota left; add to it and run again, what was answered is kept"
            )
        return None

    async def _probe(self) -> None:
        """Find out at once, not after every retry, that nobody listens there or that the key is refused."""
        try:
            await self.api.with_options(max_retries=0).models.with_raw_response.list()
        except openai.APIConnectionError as error:
            if not _timed_out(error):
                raise self._unreachable(error) from error
        except openai.APIError as error:
            # Many servers have no list of models; only a refused key says something about what follows.
            if getattr(error, "status_code", None) == 401:
                fatal = self._fatal(error)
                if fatal is not None:
                    raise fatal from error

    def _unreachable(self, error: openai.APIError) -> UserError:
        return UserError(
            f"teacher {self.base_url}: nobody answers there ({self._scrub(_cause(error))}); start it, or set "
            "teacher.base_url in the recipe; what was answered so far is kept"
        )

    def _scrub(self, text: str) -> str:
        key = self.api.api_key
        return text.replace(key, "***") if len(key) > 6 else text

    def check_reached(self) -> None:
        """Raise the UserError of a dead teacher if the last requests of a run did not reach it."""
        if self._unreached_in_a_row:
            raise UserError(
                f"teacher {self.base_url}: the last requests did not reach it; check it and run again, "
                "what was answered is kept"
            )


@asynccontextmanager
async def connected(teacher: Teacher, base_url: str, ledger: Ledger) -> AsyncIterator[TeacherClient]:
    """A client of the teacher at `base_url`, over the fastest transport that is installed.

    Raises:
        UserError: the URL is none, or holds a password.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f'teacher.base_url {base_url!r} is no URL; use "embedded", "replay", or one like http://127.0.0.1:8000/v1'
        )
    if parts.username or parts.password:
        # Not repeated here: what stands there is a secret, and would get into the ledger and the manifest.
        raise UserError(f"teacher.base_url holds a password; put the key into the variable {teacher.api_key_env}")
    # A proxy of the environment has no business between this process and a server on the same machine.
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    timeout = openai.Timeout(teacher.timeout_s, connect=min(teacher.timeout_s, _CONNECT_TIMEOUT_S))
    settings: dict[str, Any] = {"trust_env": not local, "timeout": timeout}
    try:
        transport: Any = openai.DefaultAioHttpClient(**settings)
    except RuntimeError:
        transport = openai.DefaultAsyncHttpxClient(**settings)
    api = openai.AsyncOpenAI(
        base_url=base_url,
        api_key=os.environ.get(teacher.api_key_env) or "none",
        max_retries=teacher.retries,
        timeout=timeout,
        http_client=transport,
    )
    limiter = None
    if teacher.requests_per_minute is not None:
        # Spread evenly: a bucket of a whole minute's requests lets twice as many through at first.
        limiter = AsyncLimiter(1, 60 / teacher.requests_per_minute)
    async with api:
        client = TeacherClient(teacher, base_url, ledger, api, _limiter=limiter)
        try:
            yield client
        finally:
            if client._probed is not None and not client._probed.done():
                client._probed.cancel()
                with suppress(asyncio.CancelledError, UserError):
                    await client._probed


def stored_reply(row: Row | None) -> Reply | None:
    """The reply that a ledger row holds; None if it was never answered, nor failed."""
    if row is None or row.state == "pending":
        return None
    if row.state == "failed" or row.response is None:
        return Reply(row.key, error=row.error or "failed", cached=True)
    choice = json.loads(row.response)["choices"][0]
    return Reply(row.key, choice["message"]["content"], choice.get("finish_reason") or "stop", cached=True)


def price_of(teacher: Teacher, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    """What a request cost in the recipe's money; None without prices in the recipe or usage in the answer."""
    if (teacher.price_in is None and teacher.price_out is None) or prompt_tokens is None:
        return None
    return (prompt_tokens * (teacher.price_in or 0) + (completion_tokens or 0) * (teacher.price_out or 0)) / 1e6


def _body(base_url: str, ask: Ask) -> dict[str, Any]:
    # OpenAI's newer models refuse the name of the limit that everybody else's servers know.
    hosted = (urlsplit(base_url).hostname or "").endswith("openai.com")
    limit = "max_completion_tokens" if hosted else "max_tokens"
    return {"messages": ask.messages, "temperature": ask.temperature, "seed": ask.seed, limit: ask.max_tokens}


def _unusable(body: Any) -> str | None:
    try:
        choice = body["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return "the teacher's answer has no choices"
    if reason == "content_filter":
        return "stopped by the teacher's content filter"
    return None if isinstance(content, str) else "the teacher's answer has no text"


def _tokens(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def _reason(error: openai.APIError) -> str:
    if isinstance(error, openai.APIStatusError):
        body = error.body
        said = body.get("message") if isinstance(body, dict) else None
        return f"HTTP {error.status_code}: {' '.join(str(said or error.message).split())[:300]}"
    if _timed_out(error):
        return "no answer in time"
    return f"connection: {_cause(error)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _cause(error: BaseException) -> str:
    *_, last = _chain(error)
    return " ".join(str(last).split())[:200] or type(last).__name__


def _timed_out(error: BaseException) -> bool:
    """Whether a request was sent and no answer came; what never reached the teacher is no time-out.

    The class of the openai error does not tell: over aiohttp a refused connection too is an APITimeoutError.
    """
    return any(type(link).__name__ in ("SocketTimeoutError", "ReadTimeout") for link in _chain(error))
