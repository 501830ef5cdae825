"""Many requests at once, results in order: nothing lost, nothing reordered, memory bounded, failures at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest
from teaching import simulated

from pocketstill_pipeline.session import in_order


async def gathered(found: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in found]


def ran(fn: Callable[[Any], Awaitable[Any]], items: Iterable[Any], at_once: int) -> list[Any]:
    async def main() -> list[Any]:
        return await gathered(in_order(fn, items, at_once))

    return asyncio.run(main())


@pytest.mark.parametrize("at_once", [1, 3, 64])
@pytest.mark.parametrize("waits", ["never", "some", "always"])
def test_every_result_comes_once_in_the_order_of_the_items(at_once: int, waits: str) -> None:
    rng = random.Random(at_once)

    async def square(item: int) -> int:
        if waits == "always" or (waits == "some" and item % 3):
            await asyncio.sleep(rng.random() / 500)
        return item * item

    assert ran(square, range(500), at_once) == [item * item for item in range(500)]


def test_no_more_than_so_many_are_under_way_and_all_of_these_are_used() -> None:
    under_way, most = 0, 0

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.002)
        under_way -= 1
        return item

    ran(work, range(200), 16)
    assert most == 16


def test_a_slow_item_does_not_hold_up_the_others() -> None:
    async def work(item: int) -> int:
        await asyncio.sleep(0.5 if item == 0 else 0.01)
        return item

    async def main() -> float:
        assert await gathered(in_order(work, range(160), 4)) == list(range(160))
        return asyncio.get_running_loop().time()

    # Three others do 53 each in the meantime.
    assert simulated(main()) < 0.6


def test_items_are_drawn_only_as_far_ahead_as_needed() -> None:
    drawn = 0

    def items() -> Iterable[int]:
        nonlocal drawn
        for drawn in itertools.count():  # noqa: UP028 - it counts what was drawn
            yield drawn

    async def main() -> None:
        async def work(item: int) -> int:
            await asyncio.sleep(0)
            return item

        found = in_order(work, items(), 4)
        for wanted in range(1000):
            assert await anext(found) == wanted
            assert drawn - wanted <= 64 * 4 + 4
        await found.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_failure_ends_it_at_once_and_leaves_no_task() -> None:
    async def main() -> None:
        async def work(item: int) -> int:
            if item == 5:
                raise ValueError("five")
            await asyncio.sleep(30 if item == 0 else 0.001)
            return item

        with pytest.raises(ValueError, match="five"):
            await gathered(in_order(work, range(100), 8))
        assert len(asyncio.all_tasks()) == 1

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 5


def test_a_failing_source_is_told() -> None:
    def items() -> Iterable[int]:
        yield from (1, 2)
        raise OSError("the file ends here")

    async def work(item: int) -> int:
        return item

    with pytest.raises(OSError, match="ends here"):
        ran(work, items(), 1)
