"""A run's conversation with one teacher: what routes ask through, many requests at once, results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from .asking import Ask, Messages, Reply, draw_seed
from .recipe import Teacher

T = TypeVar("T")
R = TypeVar("R")
# How far results may run ahead of one that is waited for, as a multiple of the requests at once.
_AHEAD = 64


class Client(Protocol):
    """Whoever sends: `teacher.client.TeacherClient`, or `teacher.batch.BatchClient`."""

    async def ask(self, ask: Ask) -> Reply: ...


class Session:
    """An `elicit.base.Asker` over a client."""

    def __init__(self, client: Client, teacher: Teacher, endpoint: str, seed: int) -> None:
        self.client = client
        self._teacher = teacher
        self._endpoint = endpoint
        self._seed = seed

    async def ask(
        self,
        messages: Messages,
        *,
        sample: int = 0,
        temperature: float | None = None,
        max_tokens: int | None = None,
        about: str | None = None,
        **extra: Any,
    ) -> Reply:
        """See `elicit.base.Asker`."""
        teacher = self._teacher
        if about is None:
            about = str(messages[-1].get("content") or "")
        return await self.client.ask(
            Ask(
                self._endpoint,
                teacher.model,
                messages,
                teacher.temperature if temperature is None else temperature,
                max_tokens or teacher.max_tokens,
                draw_seed(self._seed, sample, about),
                sample,
                extra,
            )
        )

    def map(self, fn: Callable[[T], Awaitable[R]], items: Iterable[T]) -> AsyncIterator[R]:
        """See `elicit.base.Asker`."""
        teacher = self._teacher
        if teacher.mode == "batch":
            return in_order(fn, items, teacher.batch_requests)
        # Twice as many as may be on their way: an item that waits for the disk keeps no request from going out. But
        # who asks for one at a time wants an answer on the disk before the next request.
        return in_order(fn, items, 2 * teacher.concurrency if teacher.concurrency > 1 else 1)


async def in_order(fn: Callable[[T], Awaitable[R]], items: Iterable[T], at_once: int) -> AsyncIterator[R]:
    """`fn` of every item, `at_once` of them under way, the results in the order of the items.

    Items are drawn as they are needed, and results wait for those before them, so memory does not grow with their
    number. The first exception ends it, and what is under way is cancelled.
    """
    source = iter(items)
    queue: deque[asyncio.Task[R]] = deque()
    running = 0
    failure: BaseException | None = None
    exhausted = False

    async def call(item: T) -> R:
        return await fn(item)

    def fill() -> None:
        nonlocal running, failure, exhausted
        while not exhausted and failure is None and running < at_once and len(queue) < _AHEAD * at_once:
            try:
                item = next(source)
            except StopIteration:
                exhausted = True
                return
            except Exception as error:
                failure, exhausted = error, True
                return
            task = asyncio.ensure_future(call(item))
            task.add_done_callback(done)
            queue.append(task)
            running += 1

    def done(task: asyncio.Task[R]) -> None:
        nonlocal running, failure
        running -= 1
        if task.cancelled() or failure is not None:
            return
        failure = task.exception()
        if failure is None:
            fill()
            return
        for other in queue:
            other.cancel()

    try:
        fill()
        while queue or not exhausted:
            if not queue:
                # All are done, and the loop has yet to tell `done` of it.
                await asyncio.sleep(0)
                continue
            if not queue[0].done():
                await asyncio.wait((queue[0],))
            if failure is not None:
                raise failure
            result = queue.popleft().result()
            fill()
            yield result
        if failure is not None:
            raise failure
    finally:
        exhausted = True
        for task in queue:
            task.cancel()
        # Awaited, so that none is left to complain after the loop has closed.
        await asyncio.gather(*queue, return_exceptions=True)
