"""Asks a teacher through OpenAI's Batch API: many requests in one file, answered later at a lower price.

What is asked at about the same time goes out as one batch. A batch is in the ledger before it is made, so that a
process that is killed while it waits leaves nothing behind that is paid: the next one finds the batch and reads it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from openai.types import Batch

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask, Reply
from pocketstill_pipeline.compact import slim
from pocketstill_pipeline.ledger import Ledger, Row
from pocketstill_pipeline.recipe import Teacher

from .batch_api import TOKEN_LIMIT, Answered, BatchApi, input_file
from .client import Tally, body_of, connect
from .protocol import LOOPBACK
from .replies import reply_of, stored_reply, unusable, usage_of
from .spending import Spending, Worst, prices_of, worst_of

# OpenAI's limit is 200 MB.
_MOST_BYTES = 190_000_000
# When no request has come for so long, those that came go out.
_QUIET_S = 0.3
# What a line has beside its request, in bytes.
_FRAME = 256
_LOCAL_POLL_S = 0.1
_MISSING = "the batch has no answer to it"


@dataclass
class BatchTally(Tally):
    """A tally with the `batches` under way: `in_flight` are their requests, `ready` those answered there already."""

    batches: int = 0
    ready: int = 0


@dataclass
class _Line:
    """A request on its way; `ask` is None as long as only an earlier process asked it.

    `attempts` have been sent, `noted` of them are in the ledger; `worst` is what is reserved for it.
    """

    key: str
    custom_id: str
    request: str
    worst: Worst
    future: asyncio.Future[Reply]
    ask: Ask | None = None
    attempts: int = 0
    noted: int = 0


@dataclass
class BatchClient:
    """A connected client; make one with `batching`."""

    teacher: Teacher
    base_url: str
    ledger: Ledger
    api: BatchApi
    spending: Spending | None = None
    tally: BatchTally = field(default_factory=BatchTally)
    _lines: dict[str, _Line] = field(default_factory=dict)
    _queue: list[_Line] = field(default_factory=list)
    _queued_bytes: int = 0
    _last_asked: float = 0.0
    _gathering: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _ready: dict[str, int] = field(default_factory=dict)
    _broken: BaseException | None = None
    # Where the teacher bears only so many tokens in batches: requests in one, and one batch after the other.
    _most_lines: int = 1 << 30
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _in_turn: bool = False

    async def ask(self, ask: Ask) -> Reply:
        """Answer from the ledger if it can, else from a batch; a request that fails alone is a Reply too.

        Raises:
            UserError: the teacher cannot be reached or refuses the batch, the budget is spent, or the ledger cannot
                be written.
        """
        known = stored_reply(self.ledger.get(ask.key))
        if known is not None and known.error is None:
            self.tally.from_cache += 1
            return known
        self.check_reached()
        line = self._lines.get(ask.key)
        if line is None:
            future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            custom_id = f"{ask.key[:40]}-sample{ask.sample}"
            line = self._lines[ask.key] = _Line(ask.key, custom_id, ask.json, worst_of(ask), future)
            self._spawn(self._put(line))
        line.ask = ask
        # One who asked may leave; others may wait for the same answer.
        return await asyncio.shield(line.future)

    def check_reached(self) -> None:
        """Raise what ended the conversation with the teacher, if anything did."""
        if self._broken is not None:
            raise self._broken

    async def _put(self, line: _Line) -> None:
        """Into the queue, as soon as the budget has room for it."""
        if self.spending is not None:
            try:
                await self.spending.reserve(line.worst)
            except UserError as error:
                del self._lines[line.key]
                _raise_in(line.future, error)
                return
        self._enqueue([line])

    def _enqueue(self, lines: Iterable[_Line]) -> None:
        for line in lines:
            self._queue.append(line)
            self._queued_bytes += len(line.request.encode()) + _FRAME
            most = min(self.teacher.batch_requests, self._most_lines)
            if len(self._queue) >= most or self._queued_bytes >= _MOST_BYTES:
                self._send()
        self._last_asked = asyncio.get_running_loop().time()
        if self._queue and (self._gathering is None or self._gathering.done()):
            self._gathering = self._spawn(self._gather())

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        while (quiet_s := loop.time() - self._last_asked) < _QUIET_S:
            await asyncio.sleep(_QUIET_S - quiet_s)
        if self._queue:
            self._send()

    def _send(self) -> None:
        lines, self._queue, self._queued_bytes = self._queue, [], 0
        self._spawn(self._batch(lines))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or self._broken is not None:
            return
        self._broken = error
        for line in self._lines.values():
            _raise_in(line.future, error)

    async def _batch(self, lines: list[_Line]) -> None:
        if not self._in_turn:
            await self._make(lines)
            return
        async with self._turn:
            while self.tally.batches:
                await asyncio.sleep(self.api.first_poll_s)
            await self._make(lines)

    async def _make(self, lines: list[_Line]) -> None:
        """Make a batch of these requests, and see it to its end."""
        # In the order of time, since a request may be in a second batch when it failed in the first.
        tag = f"{time.time_ns():x}-{secrets.token_hex(4)}"
        for line in lines:
            line.attempts += 1
            self.ledger.begin(line.key, line.request)
        asked = ((line.custom_id, body_of(self.base_url, line.ask)) for line in lines if line.ask is not None)
        self._save(tag, "creating", None, lines)
        batch_id = await self.api.make(input_file(asked), tag)
        self._save(tag, "running", batch_id, lines)
        await self._follow(tag, batch_id, lines)

    def _save(self, tag: str, state: str, batch_id: str | None, lines: list[_Line]) -> None:
        keys = {line.custom_id: [line.key, line.attempts] for line in lines}
        self.ledger.save_batch(tag, state, json.dumps({"id": batch_id, "base_url": self.base_url, "lines": keys}))

    def resume(self) -> None:
        """Wait also for the batches that an earlier process left running.

        Raises:
            UserError: the ledger cannot be read.
        """
        left: dict[str, tuple[str | None, list[_Line]]] = {}
        for tag, state, payload in self.ledger.batches():
            if state not in ("creating", "running"):
                continue
            saved = json.loads(payload)
            if saved["base_url"] != self.base_url:
                continue
            picked = [self._picked_up(custom_id, *told) for custom_id, told in saved["lines"].items()]
            left[tag] = saved["id"], [line for line in picked if line is not None]
        for tag, (batch_id, lines) in left.items():
            # The newest batch that has it answers a request.
            mine = [line for line in lines if self._lines[line.key] is line]
            self._spawn(self._pick_up(tag, batch_id, mine))

    def _picked_up(self, custom_id: str, key: str, attempts: int) -> _Line | None:
        row = self.ledger.get(key)
        # What is no longer pending was settled already, and paid.
        if row is None or row.state != "pending":
            return None
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        line = _Line(key, custom_id, row.request, worst_of(Ask(**json.loads(row.request))), future, attempts=attempts)
        if self.spending is not None and key not in self._lines:
            # It is out already, whether it fits into the budget or not.
            self.spending.take(line.worst)
        self._lines[key] = line
        return line

    async def _pick_up(self, tag: str, batch_id: str | None, lines: list[_Line]) -> None:
        found = batch_id or await self.api.find(tag)
        if found is not None:
            await self._follow(tag, found, lines)
            return
        # It was never made.
        self._save(tag, "lost", None, [])
        for line in lines:
            line.attempts -= 1
        await self._again(lines, _MISSING)

    async def _follow(self, tag: str, batch_id: str, lines: list[_Line]) -> None:
        """Wait for a batch and settle its requests."""
        self.tally.batches += 1
        self.tally.in_flight += len(lines)
        left = {line.custom_id: line for line in lines}
        try:
            batch = await self.api.ended(batch_id, lambda seen: self._seen(tag, seen))
            if batch is not None and batch.status == "failed":
                self._save(tag, "failed", batch_id, lines)
                await self._refused(batch, lines)
                return
            if batch is not None:
                async for chunk in self.api.answers(batch):
                    found = [(left.pop(one.custom_id), one) for one in chunk if one.custom_id in left]
                    self.tally.in_flight -= len(found)
                    await self._settle(found)
            await self._again(left.values(), _MISSING)
            self._save(tag, "gone" if batch is None else batch.status, batch_id, lines)
        finally:
            self.tally.batches -= 1
            self.tally.in_flight -= len(left)
            self._ready.pop(tag, None)
            self.tally.ready = sum(self._ready.values())

    def _seen(self, tag: str, batch: Batch) -> None:
        counts = batch.request_counts
        self._ready[tag] = counts.completed if counts is not None else 0
        self.tally.ready = sum(self._ready.values())

    async def _refused(self, batch: Batch, lines: list[_Line]) -> None:
        """A batch that failed as a whole: its file is wrong, or the teacher has too much in its batches already."""
        errors = batch.errors.data if batch.errors is not None else None
        first = errors[0] if errors else None
        others = self.tally.batches > 1
        if first is not None and first.code == TOKEN_LIMIT and (others or len(lines) > 1):
            self._in_turn = True
            if not others:
                self._most_lines = (len(lines) + 1) // 2
            for line in lines:
                line.attempts -= 1
            await self._again(lines, _MISSING)
            return
        said = "no reason given" if first is None else f"{first.code}: {first.message}"
        line_number = f" at line {first.line}" if first is not None and first.line else ""
        raise UserError(
            f"teacher {self.base_url}: the batch {batch.id} of {len(lines):,} requests is refused{line_number}: "
            f"{' '.join(said.split())[:300]}; mend that and run again, what was answered is kept"
        )

    async def _settle(self, found: list[tuple[_Line, Answered]]) -> None:
        """Some requests have come back: into the ledger with them, then to those who asked."""
        rows, again = [], []
        for line, answered in found:
            if answered.body is not None:
                rows.append((line, self._row(line, answered.body)))
            elif answered.again and line.attempts <= self.teacher.retries and line.ask is not None:
                again.append(line)
            else:
                attempts = line.attempts - line.noted
                row = Row(line.key, "failed", line.request, None, attempts=attempts, error=answered.error)
                rows.append((line, row))
        await asyncio.gather(*(self.ledger.finish(row) for _, row in rows))
        for line, row in rows:
            self._count(row)
            if self.spending is not None:
                self.spending.settle(line.worst, *_used(row))
            if (
                row.error is not None
                and row.response is not None
                and line.attempts <= self.teacher.retries
                and line.ask
            ):
                line.noted = line.attempts
                self._spawn(self._put(line))
                continue
            del self._lines[line.key]
            if not line.future.done():
                line.future.set_result(_reply(row))
        self._enqueue(again)

    async def _again(self, lines: Iterable[_Line], error: str) -> None:
        """Ask these in another batch, or give them up."""
        lines = list(lines)
        # Nobody has asked for these since an earlier process did.
        for line in [line for line in lines if line.ask is None]:
            del self._lines[line.key]
            if self.spending is not None:
                self.spending.settle(line.worst, 0, 0)
        asked = [line for line in lines if line.ask is not None]
        self._enqueue([line for line in asked if line.attempts <= self.teacher.retries])
        given_up = [line for line in asked if line.attempts > self.teacher.retries]
        if given_up:
            await self._settle([(line, Answered(line.custom_id, None, error)) for line in given_up])

    def _row(self, line: _Line, body: dict[str, Any]) -> Row:
        error = unusable(body)
        slim(body)
        tokens_in, tokens_out = usage_of(body)
        prices = prices_of(self.teacher, self.teacher.batch_price)
        price = prices.of(tokens_in, tokens_out or 0) if prices is not None and tokens_in is not None else None
        return Row(
            line.key, "failed" if error else "done", line.request, json.dumps(body, ensure_ascii=False), tokens_in,
            tokens_out, price, None, line.attempts - line.noted, error,
        )  # fmt: skip

    def _count(self, row: Row) -> None:
        self.tally.requests += 1
        self.tally.failed += row.error is not None
        self.tally.prompt_tokens += row.prompt_tokens or 0
        self.tally.completion_tokens += row.completion_tokens or 0
        self.tally.price += row.price or 0.0

    async def close(self) -> None:
        """Stop waiting. Batches under way go on, and are found by the next process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in self._lines.values():
            line.future.cancel()


def _used(row: Row) -> tuple[int | None, int | None]:
    """What a row's answer took, as `Spending.settle` wants it: nothing where there was no answer."""
    return (0, 0) if row.response is None else (row.prompt_tokens, row.completion_tokens)


def _reply(row: Row) -> Reply:
    if row.error is not None or row.response is None:
        return Reply(row.key, error=row.error or "failed")
    return reply_of(row.key, json.loads(row.response))


def _raise_in(future: asyncio.Future[Reply], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        # Fetched, so that none is complained of whom nobody waits for.
        future.exception()


@asynccontextmanager
async def batching(
    teacher: Teacher,
    base_url: str,
    ledger: Ledger,
    spending: Spending | None = None,
    *,
    first_poll_s: float | None = None,
) -> AsyncIterator[BatchClient]:
    """A client that asks the teacher at `base_url` in batches, those included that an earlier process left running.

    `first_poll_s` is the time to the first look at a batch, 1 s unless it is on this machine; the looks then become
    rarer, up to one a minute.

    Raises:
        UserError: the URL is none, holds a password, or the ledger cannot be read.
    """
    base_url = base_url.rstrip("/")
    async with connect(teacher, base_url) as api:
        if first_poll_s is None and urlsplit(base_url).hostname in LOOPBACK:
            first_poll_s = _LOCAL_POLL_S
        remote = BatchApi(api, f"teacher {base_url}", teacher.retries, first_poll_s)
        client = BatchClient(teacher, base_url, ledger, remote, spending)
        client.resume()
        try:
            yield client
        finally:
            await client.close()
