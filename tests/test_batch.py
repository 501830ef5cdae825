"""Collecting through the Batch API, against the local teacher's over loopback HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.responses import JSONResponse
from teaching import KINDS, chat_app, free_port, recipe_of, recorded, serving, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask, Reply, draw_seed
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.ledger import Ledger, Row
from pocketstill_pipeline.prompts import first_request
from pocketstill_pipeline.recipe import Budget, Teacher
from pocketstill_pipeline.teacher import TeacherConfig, batch
from pocketstill_pipeline.teacher.batch import BatchClient, batching
from pocketstill_pipeline.teacher.client import connected
from pocketstill_pipeline.teacher.server import make_app
from pocketstill_pipeline.teacher.spending import BudgetSpent, Spending

COIN = "A coin is heads up. {} flips the coin. Is the coin still heads up?"
NAMES = ("Ana", "Bob", "Eve", "Kim", "Lee", "Max", "Ned", "Oda", "Pia", "Ray")


def asks(count: int, **more: Any) -> list[Ask]:
    found = []
    for n in range(count):
        question = COIN.format(NAMES[n % 10])
        messages = first_request(question, "yes_no")
        given = {"temperature": 0.7, "max_tokens": 64, "seed": draw_seed(0, n // 10, question), "sample": n // 10}
        found.append(Ask("embedded?test", "embedded", messages, **given | more))
    return found


def teacher_of(**settings: Any) -> Teacher:
    return recipe_of({"mode": "batch", "retries": 3} | settings).teacher


@contextlib.contextmanager
def serving_teacher(**config: Any) -> Iterator[str]:
    with serving(make_app(TeacherConfig(mistakes=0.2, noise=0.2, **config))) as url:
        yield url


def stats(url: str) -> Any:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=20) as response:
        return json.load(response)


def ask_all(
    url: str, ledger: Path, wanted: list[Ask], spending: Spending | None = None, **settings: Any
) -> tuple[list[Reply | BaseException], BatchClient]:
    """All at once, as a route's `map` does."""

    async def run(opened: Ledger) -> tuple[list[Reply | BaseException], BatchClient]:
        async with batching(teacher_of(**settings), url, opened, spending, first_poll_s=0.02) as client:
            found = await asyncio.gather(*(client.ask(ask) for ask in wanted), return_exceptions=True)
            return found, client

    with Ledger(ledger) as opened:
        return asyncio.run(run(opened))


def rows(ledger: Path) -> dict[str, Row]:
    with Ledger(ledger, readonly=True) as opened:
        return {row.key: row for row in opened.rows()}


def states(ledger: Path) -> list[str]:
    with Ledger(ledger, readonly=True) as opened:
        return [state for _, state, _ in opened.batches()]


def texts(replies: list[Any]) -> list[str]:
    assert not [reply for reply in replies if not isinstance(reply, Reply) or reply.error is not None]
    return [reply.text for reply in replies]


def test_batch_says_what_live_requests_say_at_its_price(tmp_path: Path) -> None:
    wanted = asks(30)
    prices = {"price_in": 1.0, "price_out": 3.0}

    async def live(url: str, ledger: Ledger) -> tuple[list[Reply], float]:
        async with connected(recipe_of(prices).teacher, url, ledger) as client:
            return list(await asyncio.gather(*map(client.ask, wanted))), client.tally.price

    with serving_teacher() as url:
        with Ledger(tmp_path / "live.sqlite") as opened:
            expected, price = asyncio.run(live(url, opened))
        found, client = ask_all(url, tmp_path / "batch.sqlite", wanted, batch_price=0.25, **prices)
        assert stats(url)["batches"] == {"created": 1, "lines": 30, "completed": 1}
    assert found == expected
    assert client.tally.price == pytest.approx(price / 4) and client.tally.requests == 30
    one, other = rows(tmp_path / "live.sqlite"), rows(tmp_path / "batch.sqlite")
    same = ("key", "state", "request", "prompt_tokens", "completion_tokens", "attempts", "error")
    assert one.keys() == other.keys()
    assert all(getattr(one[key], name) == getattr(other[key], name) for key in one for name in same)


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    with serving_teacher() as url:
        first, _ = ask_all(url, tmp_path / "l.sqlite", asks(10))
        again, client = ask_all(url, tmp_path / "l.sqlite", asks(20))
        assert texts(again)[:10] == texts(first)
        assert (client.tally.from_cache, client.tally.requests) == (10, 10)
        assert stats(url)["answered_again"] == 0 and stats(url)["batches"]["created"] == 2
    assert states(tmp_path / "l.sqlite") == ["completed"] * 2


def test_same_request_asked_twice_at_once_is_one(tmp_path: Path) -> None:
    with serving_teacher() as url:
        found, client = ask_all(url, tmp_path / "l.sqlite", asks(3) * 4)
        assert client.tally.requests == 3 and stats(url)["batches"]["lines"] == 3
    assert len(set(texts(found))) <= 3


def test_full_batch_goes_out_and_the_rest_after_it(tmp_path: Path) -> None:
    with serving_teacher() as url:
        texts(ask_all(url, tmp_path / "l.sqlite", asks(25), batch_requests=10)[0])
        assert stats(url)["batches"]["created"] == 3


def test_bytes_of_a_file_are_counted_not_its_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_MOST_BYTES", 30_000)
    wanted = [
        Ask("e", "embedded", [{"role": "user", "content": f"{n} " + "漢" * 2000}], 0.0, 8, 0, 0) for n in range(10)
    ]
    with serving_teacher() as url:
        texts(ask_all(url, tmp_path / "l.sqlite", wanted)[0])
        with openai.OpenAI(base_url=url, api_key="none") as api:
            sizes = [file.bytes for file in api.files.list() if file.purpose == "batch"]
    # Each is full with the request that reaches the limit.
    assert len(sizes) == 2 and max(sizes) < 30_000 + 7000


def test_tools_and_log_probabilities_come_back(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "set_timer"}}
    timer = Ask("e", "embedded", first_request("Set a timer for 12 minutes.", "json"), 0.0, 64, 0, 0, {"tools": [tool]})
    scored = asks(1, extra={"logprobs": True, "top_logprobs": 3})[0]
    with serving(make_app(TeacherConfig(mistakes=0, noise=0))) as url:
        (call, words), _ = ask_all(url, tmp_path / "l.sqlite", [timer, scored])
    assert isinstance(call, Reply) and isinstance(words, Reply)
    assert [(c.name, json.loads(c.arguments)) for c in call.tool_calls] == [("set_timer", {"minutes": 12})]
    assert words.logprobs and len(words.logprobs[0]["top_logprobs"]) == 3


def test_lines_that_fail_are_asked_in_the_next_batch(tmp_path: Path) -> None:
    config = {"faults": 0.3, "fault_kinds": ("rate_limit",), "retry_after_s": 0.01, "seed": 1}
    with serving_teacher(**config) as url:
        found, client = ask_all(url, tmp_path / "l.sqlite", asks(60), retries=12)
        texts(found)
        counts = stats(url)
    assert client.tally.requests == 60 and client.tally.failed == 0
    assert (counts["requests"], counts["answered_again"]) == (60, 0) and counts["faults"]["rate_limit"] > 10
    # Every further batch had only what was left of the one before.
    assert max(row.attempts for row in rows(tmp_path / "l.sqlite").values()) == counts["batches"]["completed"] >= 2


def test_lines_that_keep_failing_are_listed_with_their_reason(tmp_path: Path) -> None:
    bad = asks(2, temperature=1.9)
    # Refused by the server for good: no second attempt.
    worse = Ask("e", "embedded", bad[0].messages, 0.5, 64, 1, 0, {"top_p": 7})
    with serving_teacher() as url:
        found, client = ask_all(url, tmp_path / "l.sqlite", [*bad, worse])
        assert stats(url)["batches"]["created"] == 1
    texts(found[:2])
    assert isinstance(found[2], Reply) and "HTTP 400: 'top_p' is 7" in str(found[2].error)
    row = rows(tmp_path / "l.sqlite")[worse.key]
    assert (row.state, row.attempts, row.error) == ("failed", 1, found[2].error)
    assert (client.tally.requests, client.tally.failed) == (3, 1)


def test_expired_lines_are_asked_again_and_in_the_end_given_up(tmp_path: Path) -> None:
    with serving_teacher(batch_latency_s=0.2, batch_window_s=0.1) as url:
        found, client = ask_all(url, tmp_path / "l.sqlite", asks(8), retries=2)
    errors = [reply.error for reply in found if isinstance(reply, Reply) and reply.error]
    # Half of the lines are answered in time: 4, then 2, then 1.
    assert len(errors) == 1 and errors[0].startswith("batch_expired: ")
    assert (client.tally.requests, client.tally.failed) == (8, 1)
    assert states(tmp_path / "l.sqlite") == ["expired"] * 3
    assert rows(tmp_path / "l.sqlite")[next(r.key for r in found if r.error)].attempts == 3  # type: ignore[union-attr]


def test_refused_input_file_is_one_line_for_all(tmp_path: Path) -> None:
    wanted = [Ask("e", "gpt-x", ask.messages, 0.5, 64, 1, 0) for ask in asks(3)]
    with serving_teacher() as url:
        found, client = ask_all(url, tmp_path / "l.sqlite", wanted)
    assert all(isinstance(error, UserError) for error in found)
    said = str(found[0])
    assert "of 3 requests is refused at line 1: model_not_found: The model 'gpt-x' does not exist" in said
    assert "\n" not in said
    with pytest.raises(UserError, match="model_not_found"):
        client.check_reached()
    assert states(tmp_path / "l.sqlite") == ["failed"]


def test_teacher_that_bears_few_tokens_gets_smaller_batches(tmp_path: Path) -> None:
    # Some 24 tokens a question: four at once.
    with serving_teacher(batch_tokens=110) as url:
        found, _ = ask_all(url, tmp_path / "l.sqlite", asks(12))
        texts(found)
        counts = stats(url)
    assert counts["batches"]["lines"] == 12 and counts["batches"]["failed"] >= 1 and counts["answered_again"] == 0


def test_teacher_without_a_batch_api_is_said(tmp_path: Path) -> None:
    with serving(chat_app(lambda body, count: "x")) as url:
        found, _ = ask_all(url, tmp_path / "l.sqlite", asks(2), retries=0)
    assert 'it has no Batch API there: say mode = "live"' in str(found[0])


def test_dead_teacher_is_said_at_once(tmp_path: Path) -> None:
    found, _ = ask_all(f"http://127.0.0.1:{free_port()}/v1", tmp_path / "l.sqlite", asks(2), retries=30)
    assert isinstance(found[0], UserError) and "\n" not in str(found[0])


def test_refused_key_is_said_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-value")
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def refuse(_: Any) -> JSONResponse:
        return JSONResponse({"error": {"message": "Incorrect API key sk-secret-value"}}, 401)

    with serving(Starlette(routes=[Route("/v1/files", refuse, methods=["POST"])])) as url:
        found, _ = ask_all(url, tmp_path / "l.sqlite", asks(1))
    assert "HTTP 401" in str(found[0]) and "api_key_env" in str(found[0]) and "secret" not in str(found[0])


def test_answer_with_other_line_ends_inside_is_one_line(tmp_path: Path) -> None:
    """JSON may hold U+2028, U+2029 and U+0085 as they are."""
    said = "one\u2028two\u2029three\x85four"
    question = COIN.format(NAMES[0])
    path = write_rows(tmp_path / "r.jsonl", [recorded(question, said, "yes", "yes")])
    with serving(make_app(TeacherConfig(replay=(str(path),)))) as url:
        found, client = ask_all(url, tmp_path / "l.sqlite", asks(1), retries=0)
    assert texts(found) == [said] and client.tally.failed == 0


@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "cut", "malformed", "hang"])
def test_faults_of_the_api_itself_lose_and_double_nothing(tmp_path: Path, kind: str) -> None:
    """Uploads, creations, looks and downloads are struck; a creation that was not confirmed is found, not repeated."""
    config = {"faults": 0.35, "fault_kinds": (kind,), "hang_s": 1.0, "retry_after_s": 0.01, "seed": 2}
    with serving_teacher(**config) as url:
        found, _ = ask_all(url, tmp_path / "l.sqlite", asks(20), retries=10, batch_requests=10, timeout_s=0.5)
        texts(found)
        counts = stats(url)
    assert counts["faults"][kind] > 0
    assert (counts["requests"], counts["answered_again"]) == (20, 0)
    # These two strike lines as well, which go into further batches.
    assert counts["batches"]["created"] == 2 or kind in ("rate_limit", "server_error")


def test_budget_holds_and_goes_on_when_raised(tmp_path: Path) -> None:
    wanted = asks(40)
    teacher = teacher_of(price_in=1.0, price_out=1.0)

    def limited(money: float, ledger: Path) -> Spending | None:
        with Ledger(ledger) as opened:
            return Spending.of(Budget(money=money), teacher, opened.spent())

    ledger = tmp_path / "l.sqlite"
    with serving_teacher() as url:
        whole, client = ask_all(url, tmp_path / "all.sqlite", wanted, price_in=1.0, price_out=1.0)
        limit = client.tally.price / 2
        found, client = ask_all(url, ledger, wanted, limited(limit, ledger), price_in=1.0, price_out=1.0)
        spent = sum(row.price or 0 for row in rows(ledger).values())
        assert 0 < spent <= limit and spent == pytest.approx(client.tally.price)
        refused = [one for one in found if isinstance(one, BudgetSpent)]
        assert refused and len(refused) + client.tally.requests == 40
        again, _ = ask_all(url, ledger, wanted, limited(limit * 4, ledger), price_in=1.0, price_out=1.0)
        assert texts(again) == texts(whole)
        # Once for the run without a limit, once for the two with one.
        assert stats(url)["batches"]["lines"] == 80


PROGRAM = """
import asyncio, sys
from pathlib import Path
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.teacher.batch import batching
sys.path.insert(0, sys.argv[3])
from test_batch import asks, teacher_of

async def run():
    with Ledger(Path(sys.argv[2])) as ledger:
        async with batching(teacher_of(), sys.argv[1], ledger, first_poll_s=0.02) as client:
            await asyncio.gather(*map(client.ask, asks(int(sys.argv[4]))))
asyncio.run(run())
"""


def killed(url: str, ledger: Path, count: int, when: Any) -> None:
    """A process of its own that asks, killed by signal 9 as soon as `when()`."""
    paths = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(ledger), str(Path(__file__).parent), str(count)],
        env=os.environ | {"PYTHONPATH": paths},
    ) as process:
        deadline = time.monotonic() + 30
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


def test_batch_of_a_killed_process_is_picked_up_and_paid_once(tmp_path: Path) -> None:
    ledger = tmp_path / "l.sqlite"

    def running() -> bool:
        return ledger.is_file() and "running" in states(ledger)

    with serving_teacher(batch_latency_s=1.5) as url:
        killed(url, ledger, 30, running)
        assert {row.state for row in rows(ledger).values()} == {"pending"}
        found, client = ask_all(url, ledger, asks(35))
        texts(found)
        assert stats(url)["batches"] == {"created": 2, "lines": 35, "completed": 2}
        assert client.tally.requests == 35 and stats(url)["answered_again"] == 0
    assert states(ledger) == ["completed"] * 2


def test_answer_that_failed_before_the_kill_is_not_paid_for_again(tmp_path: Path) -> None:
    """It is in the ledger, and its batch, still noted as running, is read once more."""
    ledger, prices = tmp_path / "l.sqlite", {"price_in": 1.0, "price_out": 3.0}

    async def resumed(url: str, opened: Ledger) -> None:
        async with batching(teacher_of(**prices), url, opened, first_poll_s=0.02):
            while opened.batches()[0][1] == "running":
                await asyncio.sleep(0.02)

    with serving_teacher() as url:
        ask_all(url, ledger, asks(3), **prices)
        with contextlib.closing(sqlite3.connect(ledger)) as connection:
            connection.execute("UPDATE requests SET state = 'failed', error = 'no text'")
            connection.execute("UPDATE batches SET state = 'running'")
            connection.commit()
        before = rows(ledger)
        with Ledger(ledger) as opened:
            asyncio.run(asyncio.wait_for(resumed(url, opened), 20))
    assert rows(ledger) == before and states(ledger) == ["completed"]


def test_batch_that_was_made_but_not_noted_is_found_by_its_tag(tmp_path: Path) -> None:
    ledger = tmp_path / "l.sqlite"
    with serving_teacher(batch_latency_s=0.5) as url:
        killed(url, ledger, 20, lambda: ledger.is_file() and "running" in states(ledger))
        with Ledger(ledger) as opened:
            ((tag, _, payload),) = opened.batches()
            opened.save_batch(tag, "creating", json.dumps(json.loads(payload) | {"id": None}))
        texts(ask_all(url, ledger, asks(20))[0])
        assert stats(url)["batches"]["created"] == 1


def test_batch_that_was_never_made_is_asked_anew(tmp_path: Path) -> None:
    ledger = tmp_path / "l.sqlite"
    with serving_teacher() as url:
        with Ledger(ledger) as opened:
            wanted = asks(5)
            for ask in wanted:
                opened.begin(ask.key, ask.json)
            keys = {f"{ask.key[:40]}-sample{ask.sample}": [ask.key, 1] for ask in wanted}
            opened.save_batch("0", "creating", json.dumps({"id": None, "base_url": url, "lines": keys}))
        texts(ask_all(url, ledger, wanted)[0])
        assert stats(url)["batches"]["lines"] == 5
    assert states(ledger) == ["lost", "completed"]


def test_a_passing_404_for_a_batch_does_not_pay_for_it_again(tmp_path: Path) -> None:
    app, left = make_app(TeacherConfig()), 2

    async def behind_a_gateway(scope: Any, receive: Any, send: Any) -> None:
        nonlocal left
        if left and scope.get("method") == "GET" and "/batches/" in scope["path"]:
            left -= 1
            await JSONResponse({"error": {"message": "no route"}}, 404)(scope, receive, send)
        else:
            await app(scope, receive, send)

    with serving(behind_a_gateway) as url:
        replies, _ = ask_all(url, tmp_path / "l.sqlite", asks(5))
        assert stats(url)["batches"]["created"] == 1 and left == 0
    assert all(reply.text for reply in replies)


def test_server_that_forgot_a_batch_is_asked_anew(tmp_path: Path) -> None:
    """A local teacher ends with the process that started it, and its batches with it."""
    ledger, port = tmp_path / "l.sqlite", free_port()
    with serving_teacher(batch_latency_s=60) as url:
        killed(url, ledger, 6, lambda: ledger.is_file() and "running" in states(ledger))
    del port
    with serving_teacher() as other:
        with Ledger(ledger) as opened:
            ((tag, state, payload),) = opened.batches()
            opened.save_batch(tag, state, json.dumps(json.loads(payload) | {"base_url": other}))
        texts(ask_all(other, ledger, asks(6))[0])
    assert states(ledger) == ["gone", "completed"]


def test_client_s_own_download_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    with serving_teacher(faults=0.5, fault_kinds=("cut",), seed=3) as url:
        found, client = ask_all(url, tmp_path / "l.sqlite", asks(300), retries=12)
        texts(found)
        assert client.tally.requests == 300 and stats(url)["answered_again"] == 0


def test_recipe_in_batches_makes_the_same_samples_as_live_at_half_the_price(tmp_path: Path) -> None:
    skills = [{"name": name, "kind": kind, "questions": 10, "heldout": 4} for name, kind in KINDS.items()]
    found = {}
    for mode in ("live", "batch"):
        found[mode] = collect(recipe_of({"mode": mode, "price_in": 1.0, "price_out": 2.0}, skills), tmp_path / mode)
    samples = [(tmp_path / mode / "samples" / "zero_shot_cot.jsonl").read_bytes() for mode in found]
    assert samples[0] == samples[1] and found["batch"].requests == found["live"].requests
    assert found["batch"].price == pytest.approx(found["live"].price / 2)
    # Two steps a question: the rationales in one batch, the answers behind them in the next.
    assert states(tmp_path / "batch" / "ledger.sqlite") == ["completed"] * 2


def test_tally_shows_a_batch_under_way(tmp_path: Path) -> None:
    seen = []

    async def run(url: str, ledger: Ledger) -> None:
        async with batching(teacher_of(), url, ledger, first_poll_s=0.02) as client:
            waiting = [asyncio.ensure_future(client.ask(ask)) for ask in asks(20)]
            while not all(task.done() for task in waiting):
                seen.append((client.tally.batches, client.tally.in_flight, client.tally.ready))
                await asyncio.sleep(0.02)
            assert (client.tally.batches, client.tally.in_flight, client.tally.ready) == (0, 0, 0)

    with serving_teacher(batch_latency_s=1) as url, Ledger(tmp_path / "l.sqlite") as opened:
        asyncio.run(run(url, opened))
    ready = [ready for batches, flying, ready in seen if (batches, flying) == (1, 20)]
    assert ready == sorted(ready) and len(set(ready)) > 3
