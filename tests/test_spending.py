"""Budgets: no request goes out that could exceed them, and raising them goes on where it stopped."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from teaching import chat_app, serving

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask, Reply
from pocketstill_pipeline.ledger import Ledger, Row, Spent
from pocketstill_pipeline.recipe import Budget, Teacher
from pocketstill_pipeline.session import Session
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.client import Tally, connected
from pocketstill_pipeline.teacher.server import running_teacher
from pocketstill_pipeline.teacher.spending import BudgetSpent, Prices, Spending, Worst, worst_of

COIN = "A coin is heads up. Ana flips the coin. Bob does not flip the coin. Is the coin still heads up?"


def teacher_at(url: str, **more: Any) -> Teacher:
    return Teacher(base_url=url, **({"max_tokens": 64, "concurrency": 8} | more))


def collect(teacher: Teacher, folder: Path, budget: Budget, requests: int) -> tuple[list[Reply], Tally, str | None]:
    """Ask so many questions within a budget: replies, tally, and what stopped it."""
    replies: list[Reply] = []

    async def run() -> tuple[Tally, str | None]:
        with Ledger(folder / "l.sqlite") as ledger:
            spending = Spending.of(budget, teacher, ledger.spent())
            async with connected(teacher, teacher.base_url, ledger, spending) as client:
                session = Session(client, teacher, "e", 1)
                said = None
                try:
                    async for reply in session.map(lambda i: session.ask([user(f"{COIN} {i}")]), range(requests)):
                        replies.append(reply)
                except BudgetSpent as error:
                    said = str(error)
            return client.tally, said

    return replies, *asyncio.run(run())


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def spent(folder: Path) -> tuple[int, float, int]:
    """Answered rows, money and tokens of a ledger, added up row by row."""
    with Ledger(folder / "l.sqlite", readonly=True) as ledger:
        rows = list(ledger.rows())
    money = sum(row.price or 0.0 for row in rows)
    return (
        sum(row.state == "done" for row in rows),
        money,
        sum((row.prompt_tokens or 0) + (row.completion_tokens or 0) for row in rows),
    )


def test_limit_of_half_the_cost_stops_and_raising_it_resumes(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig(latency_ms=2)) as url:
        teacher = teacher_at(url, price_in=1.0, price_out=2.0)
        collect(teacher, tmp_path / "whole", Budget(), 60)
        _, whole, _ = spent(tmp_path / "whole")
        half = Budget(money=whole / 2)
        replies, tally, said = collect(teacher, tmp_path / "cut", half, 60)
        answered, money, _ = spent(tmp_path / "cut")
        assert said is not None and "money are spent" in said and "\n" not in said
        assert f"{answered:,} requests were answered" in said
        # Never more than the limit, and less by no more than the worst case of one request.
        worst = worst_of(Ask("e", "embedded", [user(f"{COIN} 59")], 0.7, 64, 0, 0))
        assert whole / 2 - Prices(1.0, 2.0).of(worst.prompt, worst.completion) <= money <= whole / 2
        assert tally.price == pytest.approx(money) and len(replies) <= answered
        replies, tally, said = collect(teacher, tmp_path / "cut", Budget(money=2 * whole), 60)
        assert said is None and len(replies) == 60
        assert (tally.requests, tally.from_cache) == (60 - answered, answered)
    assert spent(tmp_path / "cut") == pytest.approx(spent(tmp_path / "whole"))


def test_token_limit_counts_what_the_ledger_holds(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig()) as url:
        teacher = teacher_at(url)
        collect(teacher, tmp_path, Budget(), 10)
        _, _, before = spent(tmp_path)
        _, tally, said = collect(teacher, tmp_path, Budget(tokens=before + 100), 20)
        assert tally.requests == 0 and said is not None and f"{before:,} of {before + 100:,} tokens" in said


def test_requests_on_their_way_are_recorded_at_the_stop(tmp_path: Path) -> None:
    """A stop loses no answer that was paid for: the server's count of answers is the ledger's."""
    app = chat_app(lambda _body, _count: time.sleep(0.02) or "yes")
    with serving(app) as url:
        _, _, said = collect(teacher_at(url, concurrency=16), tmp_path, Budget(tokens=4000), 500)
        assert said is not None
        answered, _, tokens = spent(tmp_path)
        assert answered == app.state.counted["count"] and tokens <= 4000


def test_failed_attempts_that_report_tokens_are_paid_for(tmp_path: Path) -> None:
    """Two answers without choices, then a good one: three times the tokens, in the ledger, the tally and the budget."""

    def answer(_body: Any, count: int) -> Any:
        if count <= 2:
            return JSONResponse({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}})
        return "yes"

    with serving(chat_app(answer)) as url:
        teacher = teacher_at(url, price_in=1e6, price_out=1e6, concurrency=1)
        _, tally, _ = collect(teacher, tmp_path, Budget(money=10_000), 1)
    with Ledger(tmp_path / "l.sqlite", readonly=True) as ledger:
        (row,) = ledger.rows()
        assert (row.state, row.prompt_tokens, row.completion_tokens, row.price, row.attempts) == ("done", 30, 15, 45, 3)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.price, tally.retried) == (30, 15, 45.0, 2)


def test_attempts_without_an_answer_cost_nothing(tmp_path: Path) -> None:
    with serving(chat_app(lambda _body, count: PlainTextResponse("no", 500) if count == 1 else "yes")) as url:
        collect(teacher_at(url), tmp_path, Budget(tokens=1000), 1)
    assert spent(tmp_path) == (1, 0.0, 15)


def test_answer_without_usage_counts_at_its_worst_now_and_later(tmp_path: Path) -> None:
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    with serving(chat_app(lambda _body, _count: JSONResponse({"choices": [choice]}))) as url:
        teacher = teacher_at(url, price_in=1.0, price_out=1.0, concurrency=1)
        worst = worst_of(Ask("e", "embedded", [user(f"{COIN} 0")], 0.7, 64, 0, 0))
        _, _, said = collect(teacher, tmp_path, Budget(tokens=worst.tokens * 3 + 10), 9)
        assert said is not None and spent(tmp_path)[0] == 3
        with Ledger(tmp_path / "l.sqlite") as ledger:
            again = Spending.of(Budget(tokens=10_000), teacher, ledger.spent())
        assert again is not None and again.tokens == 3 * worst.tokens


def test_rows_recorded_without_prices_are_priced_when_money_is_limited(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(ledger.finish(Row("k", "done", "{}", "{}", prompt_tokens=10, completion_tokens=5)))
        asyncio.run(ledger.finish(Row("l", "done", "{}", "{}", prompt_tokens=10, completion_tokens=5, price=7.0)))
        spending = Spending(100.0, None, Prices(1e6, 2e6), ledger.spent())
    assert (spending.money, spending.tokens) == (27.0, 30)


@pytest.mark.parametrize("prices", [{}, {"price_in": 1.0}, {"price_out": 1.0}])
def test_money_limit_without_prices_is_an_error(prices: dict[str, float]) -> None:
    with pytest.raises(UserError, match="price_in and price_out"):
        Spending.of(Budget(money=1.0), Teacher(**prices), Spent(0.0, 0, 0, 0, 0, ()))


def test_large_request_is_not_overtaken_for_ever() -> None:
    """First come, first served: one that needs all of the budget waits for those before it, and none passes it."""

    async def run() -> list[str]:
        spending, order = Spending(tokens=100), list[str]()
        small, large = Worst(5, 5), Worst(40, 60)
        for _ in range(3):
            await spending.reserve(small)

        async def take(name: str, worst: Worst) -> None:
            await spending.reserve(worst)
            order.append(name)
            spending.settle(worst, 0, 0)

        tasks = [asyncio.ensure_future(take("large", large)), asyncio.ensure_future(take("late", small))]
        for _ in range(3):
            await asyncio.sleep(0)
            assert order == []
            spending.settle(small, 0, 0)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == ["large", "late"]


def test_limit_holds_whatever_comes_when() -> None:
    """A thousand requests of random size and time: what is used never passes the limit, and little of it is left."""

    async def run(seed: int) -> None:
        rng, spending, stopped = random.Random(seed), Spending(tokens=20_000), 0

        async def one() -> None:
            nonlocal stopped
            worst = Worst(rng.randrange(1, 50), rng.randrange(1, 200))
            try:
                await spending.reserve(worst)
            except BudgetSpent:
                stopped += 1
                return
            used = None
            try:
                await asyncio.sleep(rng.random() * 0.01)
                if rng.random() > 0.1:
                    used = rng.randrange(worst.prompt + 1), rng.randrange(worst.completion + 1)
            finally:
                spending.settle(worst, *(used or (0, 0)))

        tasks = [asyncio.ensure_future(one()) for _ in range(1000)]
        for task in rng.sample(tasks, 50):
            asyncio.get_running_loop().call_later(rng.random() * 0.05, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert stopped > 0
        assert 20_000 - 250 <= spending.tokens <= 20_000

    for seed in range(3):
        asyncio.run(run(seed))


def test_worst_case_is_no_less_than_any_tokenizer_makes_of_it() -> None:
    messages = [user("Zähle: 漢字 🙂🙂 naïve\n\n1234567890"), {"role": "assistant", "content": "x" * 50}]
    ask = Ask("e", "m", messages, 0.0, 30, 0, 0, {"n": 2, "tools": [{"type": "function"}]})
    texts = "".join(message["content"] for message in messages)
    worst = worst_of(ask)
    assert worst.prompt > len(texts.encode()) + len(json.dumps(ask.extra["tools"]))
    assert worst.completion == 60
