"""The pace: as many at once as a server bears, found by asking, and no more a minute than is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from teaching import simulated

from pocketstill_pipeline.teacher.pacing import Outcome, Pace, TokenGuess

Answer = Callable[[Pace], Awaitable[Outcome]]


def now() -> float:
    return asyncio.get_running_loop().time()


async def drive(pace: Pace, requests: int, answer: Answer, tokens: float = 0.0) -> list[float]:
    """Send so many requests at once through a pace; the times at which they went out, in seconds from the start."""
    out: list[float] = []
    started = now()

    async def one() -> None:
        outcome: Outcome = "overloaded"
        again = False
        while outcome == "overloaded":
            entered = await pace.enter(tokens, again=again)
            out.append(now() - started)
            outcome = await answer(pace)
            pace.leave(entered, outcome, tokens, tokens)
            again = True

    await asyncio.gather(*(one() for _ in range(requests)))
    pace.close()
    return out


def answering(seconds: float, bears: int = 1 << 30) -> tuple[Answer, dict[str, int]]:
    """A server that answers after so long, and at once refuses what is more than it bears."""
    seen = {"now": 0, "most": 0, "refused": 0}

    async def answer(pace: Pace) -> Outcome:
        if seen["now"] >= bears:
            seen["refused"] += 1
            return "overloaded"
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        await asyncio.sleep(seconds)
        seen["now"] -= 1
        return "answered"

    return answer, seen


def test_never_more_at_once_than_the_ceiling() -> None:
    answer, seen = answering(0.005)
    simulated(drive(Pace(5), 100, answer))
    assert seen["most"] == 5


def test_short_answers_open_sixty_four_at_once_within_a_quarter_second() -> None:
    answer, seen = answering(0.05)

    async def run() -> tuple[Pace, float]:
        pace = Pace(64)
        task = asyncio.ensure_future(drive(pace, 600, answer))
        started = now()
        while pace.limit < 64:
            await asyncio.sleep(0.005)
        reached = now() - started
        await task
        return pace, reached

    _, reached = simulated(run())
    assert reached < 0.25 and seen["most"] == 64


def test_long_answers_open_a_thousand_at_once_before_the_first_comes() -> None:
    answer, seen = answering(2.0)
    simulated(drive(Pace(1000), 1000, answer))
    assert seen["most"] == 1000


def test_finds_what_the_server_bears() -> None:
    """Far below the ceiling: little more than it bears is ever tried, and most of what it bears is used."""
    answer, seen = answering(0.02, bears=40)

    async def run() -> tuple[Pace, float]:
        pace = Pace(500)
        started = now()
        await drive(pace, 2000, answer)
        return pace, now() - started

    pace, seconds = simulated(run())
    assert seen["most"] == 40
    assert seen["refused"] < 400
    assert 15 <= pace.limit <= 80
    # Ideal is one second.
    assert seconds < 2.5


def test_one_burst_of_refusals_halves_once() -> None:
    async def run() -> int:
        pace = Pace(16)
        entered = [await pace.enter() for _ in range(16)]
        await asyncio.sleep(0.01)
        for at in entered:
            pace.leave(at, "overloaded")
        return pace.limit

    assert simulated(run()) == 8


def test_comes_back_fast_after_an_outage() -> None:
    """Every request is refused until one at a time goes out; soon then as many do as before it."""
    answer, _ = answering(0.02)
    outage, answered = False, 0

    async def with_outage(pace: Pace) -> Outcome:
        nonlocal answered
        if outage:
            await asyncio.sleep(0.001)
            return "overloaded"
        outcome = await answer(pace)
        answered += 1
        return outcome

    async def run() -> int:
        nonlocal outage, answered
        pace = Pace(200)
        task = asyncio.ensure_future(drive(pace, 30_000, with_outage))
        while pace.limit < 200:
            await asyncio.sleep(0.001)
        outage = True
        while pace.limit > 1:
            await asyncio.sleep(0.001)
        outage, answered = False, 0
        while pace.limit < 90:
            await asyncio.sleep(0.001)
        needed = answered
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return needed

    # One more for every answer; by one a round trip it would take 4,000 answers.
    assert simulated(run()) < 600


def test_single_time_outs_leave_the_limit_many_halve_it() -> None:
    async def run(outcomes: list[Outcome]) -> int:
        pace = Pace(16)
        entered = [await pace.enter() for _ in outcomes]
        for at, outcome in zip(entered, outcomes, strict=True):
            pace.leave(at, outcome)
        return pace.limit

    assert simulated(run(["timed_out", *["answered"] * 15])) == 16  # type: ignore[list-item]
    assert simulated(run(["timed_out"] * 16)) < 16


def test_pause_holds_all_that_is_new() -> None:
    answer, _ = answering(0.001)

    async def run() -> list[float]:
        pace = Pace(8)
        pace.pause(0.3)
        return await drive(pace, 20, answer)

    assert min(simulated(run())) >= 0.3


def test_requests_a_minute_are_spread() -> None:
    answer, _ = answering(0.0)
    out = simulated(drive(Pace(64, requests_per_minute=3000), 50, answer))
    # 50 a second, in portions of two and a half: nothing like a minute's worth at once.
    assert 0.9 <= max(out) < 2.0
    assert sum(at < 0.5 for at in out) <= 30


def test_tokens_a_minute_are_spread_and_large_requests_pass() -> None:
    answer, _ = answering(0.0)
    # 100 tokens a second, so a bucket that one request of 150 does not fit into.
    out = simulated(drive(Pace(64, tokens_per_minute=6000), 3, answer, tokens=150))
    assert 3.0 <= max(out) < 4.5


def test_tokens_that_were_not_expected_are_waited_for() -> None:
    async def run() -> float:
        pace = Pace(4, tokens_per_minute=6000)
        pace.leave(await pace.enter(1), "answered", 1, 201)
        started = now()
        pace.leave(await pace.enter(1), "answered", 1, 1)
        return now() - started

    assert simulated(run()) == pytest.approx(1.0, abs=0.4)


def test_one_who_stops_waiting_gives_the_turn_on() -> None:
    async def run() -> None:
        pace = Pace(1)
        entered = await pace.enter()
        left, stays = (asyncio.ensure_future(pace.enter()) for _ in range(2))
        await asyncio.sleep(0)
        left.cancel()
        pace.leave(entered, "answered")
        await asyncio.wait_for(stays, 1)
        with pytest.raises(asyncio.CancelledError):
            await left
        assert (pace.flying, pace.waiting) == (1, 0)
        pace.close()

    simulated(run())


def test_one_who_is_stopped_with_the_turn_in_hand_gives_it_on() -> None:
    async def run() -> None:
        pace = Pace(1)
        entered = await pace.enter()
        granted, next_one = (asyncio.ensure_future(pace.enter()) for _ in range(2))
        await asyncio.sleep(0)
        pace.leave(entered, "answered")
        granted.cancel()
        await asyncio.wait_for(next_one, 1)
        assert (pace.flying, pace.waiting) == (1, 0)
        pace.close()

    simulated(run())


def test_guess_learns_what_the_teacher_reports() -> None:
    guess = TokenGuess()
    assert guess.of(100, 256) == 356
    for _ in range(200):
        guess.learn(100, 130, 40)
    assert guess.of(100, 256) == pytest.approx(170, rel=0.02)
    assert guess.of(100, 8) == pytest.approx(138, rel=0.02)
