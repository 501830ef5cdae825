"""The teacher's client over real loopback HTTP: faults, limits, and every form of answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from teaching import chat_app, serving

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask, Reply, ToolCall
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.recipe import Teacher
from pocketstill_pipeline.session import Session
from pocketstill_pipeline.teacher import FAULT_KINDS, TeacherConfig, failures, line
from pocketstill_pipeline.teacher.batch import batching
from pocketstill_pipeline.teacher.client import Tally, connected
from pocketstill_pipeline.teacher.failures import backoff_s, retry_after_s
from pocketstill_pipeline.teacher.replies import reply_of
from pocketstill_pipeline.teacher.server import running_teacher

COIN = "A coin is heads up. Ana flips the coin. Bob does not flip the coin. Is the coin still heads up?"
OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once: what is tested is not how long they wait."""
    monkeypatch.setattr(failures, "_FIRST_BACKOFF_S", 0.02)


def ask_all(
    url: str, folder: Path, requests: int, *, extra: dict[str, Any] | None = None, **settings: Any
) -> tuple[list[Reply], Tally]:
    """Ask so many questions of the server at `url`; the replies in order, and the tally."""
    teacher = Teacher(base_url=url, **({"concurrency": 32, "timeout_s": 5.0} | settings))

    async def run() -> tuple[list[Reply], Tally]:
        with Ledger(folder / "l.sqlite") as ledger:
            async with connected(teacher, url, ledger) as client:
                session = Session(client, teacher, "e", 1)

                def one(index: int) -> Any:
                    return session.ask([{"role": "user", "content": f"{COIN} {index}"}], **(extra or {}))

                return [reply async for reply in session.map(one, range(requests))], client.tally

    return asyncio.run(run())


def rows_of(folder: Path) -> list[Any]:
    with Ledger(folder / "l.sqlite", readonly=True) as ledger:
        return list(ledger.rows())


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=20) as response:
        return dict(json.load(response))


@contextlib.contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """A server that answers the first request of every connection with these bytes and closes it.

    An answer that is whole says `connection: close`: else its connection may be used again before its end is seen, and
    the next request meets a reset.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(5)
                    got = b""
                    while b"\r\n\r\n" not in got or (b"POST" in got and not got.endswith(b"}")):
                        if not (part := connection.recv(65536)):
                            break
                        got += part
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("faults", "retries"), [(0.2, 5), (0.5, 1)])
def test_every_question_ends_answered_or_failed_with_its_reason(tmp_path: Path, faults: float, retries: int) -> None:
    config = TeacherConfig(faults=faults, hang_s=2.0, retry_after_s=0.05, seed=3)
    with running_teacher(config) as url:
        replies, tally = ask_all(url, tmp_path, 300, retries=retries, timeout_s=0.5)
        seen = stats(url)
    assert all(seen["faults"][kind] > 0 for kind in FAULT_KINDS)
    rows = rows_of(tmp_path)
    assert {row.state for row in rows} <= {"done", "failed"} and len(rows) == len(replies) == 300
    failed = [reply for reply in replies if reply.error]
    assert sum(row.state == "failed" for row in rows) == len(failed) == tally.failed
    assert all(row.error for row in rows if row.state == "failed")
    assert all(reply.text for reply in replies if not reply.error)
    # A request fails when all of its attempts did; four kinds in six are failures, and a refusal hardly counts.
    share = (faults * 4 / (6 - faults)) ** (retries + 1)
    assert len(failed) / 300 == pytest.approx(share, abs=4 * (share / 300) ** 0.5 + 1e-3)
    assert tally.retried > 0 and tally.rate_limited == seen["faults"]["rate_limit"]


def test_failures_of_half_the_requests_do_not_end_the_run(tmp_path: Path) -> None:
    """Without retries, every second request fails for another reason: a run of them is chance, not a dead teacher."""
    with running_teacher(TeacherConfig(faults=0.5, hang_s=1.0, retry_after_s=0.01)) as url:
        replies, tally = ask_all(url, tmp_path, 400, retries=0, timeout_s=0.5)
    reasons = {row.error for row in rows_of(tmp_path) if row.error}
    assert 120 < tally.failed < 220 and len(replies) == 400
    assert any("HTTP 429" in reason for reason in reasons) and any("HTTP 500" in reason for reason in reasons)
    assert {"no answer in time", "the teacher's answer is not JSON"} <= reasons
    assert any(reason.startswith("connection: ") for reason in reasons)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["cut", "malformed", "hang", "server_error"])
def test_fault_that_passes_is_retried(tmp_path: Path, kind: str) -> None:
    config = TeacherConfig(faults=0.3, fault_kinds=(kind,), hang_s=8.0)
    with running_teacher(config) as url:
        replies, tally = ask_all(url, tmp_path, 20, retries=8, timeout_s=1.0 if kind == "hang" else 10.0)
        assert stats(url)["faults"][kind] == tally.retried > 0
    assert tally.failed == 0 and all(reply.text for reply in replies)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"nonsense\r\n\r\n", "connection: "),
        (b"", "connection: "),
        (OK + b"content-length: 999\r\n\r\n{", "connection: "),
        (OK + b"content-length: 2\r\n\r\n[]", "the teacher's answer has no choices"),
        (OK + b"content-length: 4\r\n\r\nnull", "the teacher's answer has no choices"),
        (OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}", "connection: "),
        (b"HTTP/1.1 999 What\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", "HTTP 999"),
    ],
)
def test_whatever_a_server_sends_is_a_reason(tmp_path: Path, answer: bytes, said: str) -> None:
    with raw_server(answer) as url:
        replies, _ = ask_all(url, tmp_path, 1, retries=0)
    assert replies[0].error is not None and replies[0].error.startswith(said)
    assert [row.state for row in rows_of(tmp_path)] == ["failed"]


@pytest.mark.parametrize("proxy", ["http://bad:port", "socks9://x:1"])
def test_a_proxy_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UserError, match=r"a proxy of the environment cannot be used .* mend HTTP_PROXY"):
        ask_all("http://example.invalid/v1", tmp_path, 1)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>\nHeads, then\ntails.\n</think>\n\nThe answer is no.", "The answer is no."),
        ("Heads, then tails.\n</think>\n\nThe answer is no.", "The answer is no."),
        ("<think></think>no", "no"),
        ("Models write <think>so</think> aloud.", "Models write <think>so</think> aloud."),
        ("<think>Heads, then", "<think>Heads, then"),
        ("The answer is no.", "The answer is no."),
    ],
)
def test_thinking_aloud_is_no_part_of_an_answer(content: str, text: str) -> None:
    reply = reply_of("k", {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})
    assert reply.text.strip() == text


def test_error_in_a_body_with_status_200_is_its_reason(tmp_path: Path) -> None:
    app = chat_app(lambda _body, _count: JSONResponse({"error": {"message": "upstream\nis busy"}}))
    with serving(app) as url:
        replies, _ = ask_all(url, tmp_path, 1, retries=0)
    assert replies[0].error == "the teacher's answer has no choices: upstream is busy"


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        ({"finish_reason": "error", "error": {"code": 502, "message": "provider\ngone"}}, ": provider gone"),
        ({"finish_reason": None, "error": {"code": 502}}, ""),
        ({"finish_reason": "abort"}, ""),
    ],
)
def test_answer_that_broke_off_is_asked_again(tmp_path: Path, choice: dict[str, Any], error: str) -> None:
    """What servers send with status 200 when their model died halfway: OpenRouter the first two, vLLM the last."""
    half = {"message": {"role": "assistant", "content": "The answer is"}} | choice
    app = chat_app(lambda _body, count: JSONResponse({"choices": [half], "usage": USAGE}) if count < 3 else "yes")
    with serving(app) as url:
        given_up, _ = ask_all(url, tmp_path, 1, retries=0)
        replies, _ = ask_all(url, tmp_path, 1, retries=1)
    assert given_up[0].error == "the teacher's answer broke off" + error
    assert replies[0].text == "yes" and rows_of(tmp_path)[0].prompt_tokens == 30


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after_s({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retry_after_s({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 0.0


def test_backoff_doubles_up_to_its_end_and_is_spread() -> None:
    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (9, 8.0), (10_000, 8.0)):
        waits = [backoff_s(attempt, None) for _ in range(200)]
        assert 0.75 * most <= min(waits) < max(waits) <= most
    assert 3.0 <= backoff_s(1, 3.0) <= 3.75


def test_retry_after_holds_every_new_request(tmp_path: Path) -> None:
    times: list[float] = []

    def answer(_body: Any, count: int) -> Any:
        times.append(time.monotonic())
        if count == 1:
            return JSONResponse({"error": {"message": "slow"}}, status_code=429, headers={"retry-after-ms": "600"})
        return "yes"

    with serving(chat_app(answer)) as url:
        _, tally = ask_all(url, tmp_path, 30, concurrency=2)
    assert tally.rate_limited == 1 and tally.failed == 0
    # Who was on the way already came through; all others waited.
    assert sum(at - times[0] < 0.55 for at in times) <= 2


def test_refusals_that_do_not_say_how_long_are_waited_out(tmp_path: Path) -> None:
    """Forty a second are allowed and no Retry-After is given: none of the requests uses up its attempts."""
    times: list[float] = []

    def answer(_body: Any, _count: int) -> Any:
        now = time.monotonic()
        if sum(now - at < 0.25 for at in times) >= 10:
            return JSONResponse({"error": {"message": "too many"}}, status_code=429)
        times.append(now)
        return "yes"

    with serving(chat_app(answer)) as url:
        _, tally = ask_all(url, tmp_path, 60)
    assert tally.failed == 0 and 0 < tally.rate_limited < 60


@pytest.mark.parametrize("again", ["0", "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_refusals_that_ask_for_no_wait_are_waited_out(tmp_path: Path, again: str) -> None:
    """No time, or one that has passed by our clock: the attempts are not used up within a moment."""
    times: list[float] = []

    def answer(_body: Any, _count: int) -> Any:
        times.append(time.monotonic())
        if times[-1] - times[0] < 0.6:
            return JSONResponse({"error": {"message": "busy"}}, status_code=429, headers={"retry-after": again})
        return "yes"

    with serving(chat_app(answer)) as url:
        _, tally = ask_all(url, tmp_path, 1, retries=3)
    assert tally.failed == 0 and 0 < tally.rate_limited <= 3


def test_refusals_count_as_a_tenth_of_an_attempt(tmp_path: Path) -> None:
    """Many are refused before their turn comes where a minute's requests are limited; for ever nobody is asked."""
    refusal = JSONResponse({"error": {"message": "slow"}}, status_code=429, headers={"retry-after-ms": "1"})
    app = chat_app(lambda _body, count: refusal if count <= 9 else "yes")
    with serving(app) as url:
        replies, tally = ask_all(url, tmp_path / "some", 1, retries=1)
    assert replies[0].text == "yes" and (tally.rate_limited, tally.retried) == (9, 9)
    app = chat_app(lambda _body, _count: refusal)
    with serving(app) as url:
        replies, _ = ask_all(url, tmp_path / "all", 1, retries=1)
    assert replies[0].error == "HTTP 429: slow" and app.state.counted["count"] == 11


def test_server_that_asks_for_hours_ends_the_run(tmp_path: Path) -> None:
    refusal = JSONResponse({"error": {"message": "daily limit"}}, status_code=429, headers={"retry-after": "7200"})
    with serving(chat_app(lambda _body, _count: refusal)) as url, pytest.raises(UserError, match=r"120 minutes.*daily"):
        ask_all(url, tmp_path, 5)


def test_nothing_goes_out_after_an_answer_that_ends_the_run(tmp_path: Path) -> None:
    refusal = JSONResponse({"error": {"message": "daily limit"}}, status_code=429, headers={"retry-after": "7200"})
    app = chat_app(lambda _body, _count: refusal)

    async def run(url: str) -> list[Any]:
        teacher = Teacher(base_url=url, concurrency=2)
        with Ledger(tmp_path / "l.sqlite") as ledger:
            async with connected(teacher, url, ledger) as client:
                asks = [Ask("e", "m", [{"role": "user", "content": str(i)}], 0.0, 8, 0, 0) for i in range(20)]
                return await asyncio.gather(*map(client.ask, asks), return_exceptions=True)

    with serving(app) as url:
        found = asyncio.run(run(url))
    assert all(isinstance(error, UserError) for error in found) and app.state.counted["count"] <= 2


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000v1",
        "http://127.0.0.1:99999/v1",
        "http://[::1/v1",
        "http://api..example.com/v1",
        "http://me:secret@127.0.0.1:8000v1",
    ],
)
def test_mistyped_url_is_one_line_without_its_password(tmp_path: Path, url: str, mode: Any) -> None:
    teacher = Teacher(base_url=url, mode=mode)

    async def run() -> None:
        with Ledger(tmp_path / "l.sqlite") as ledger:
            async with (batching if mode == "batch" else connected)(teacher, url, ledger):
                pass

    with pytest.raises(UserError, match="is no URL") as caught:
        asyncio.run(run())
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-new\nline", "sk-\u201cquoted\u201d", "sk-\x7f"])
def test_key_that_no_header_can_hold_is_one_line_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="in the environment variable OPENAI_API_KEY") as caught:
        ask_all("http://127.0.0.1:9/v1", tmp_path, 1)
    assert "sk-" not in str(caught.value)


def test_white_space_around_a_key_is_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-right\n")
    sent: list[str] = []

    app = chat_app(lambda _body, _count: "yes")

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        sent.append(dict(scope["headers"])[b"authorization"].decode())
        await app(scope, receive, send)

    with serving(noting) as url:
        ask_all(url, tmp_path, 1)
    assert set(sent) == {"Bearer sk-right"}


def test_idle_connection_is_left_before_the_server_closes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_KEEP_ALIVE_S", 0.2)
    ports: list[int] = []

    async def run(url: str) -> None:
        with Ledger(tmp_path / "l.sqlite") as ledger:
            async with connected(Teacher(base_url=url), url, ledger) as client:
                for content in "ab":
                    await client.ask(Ask("e", "m", [{"role": "user", "content": content}], 0.0, 8, 0, 0))
                    await asyncio.sleep(0.5)

    app = chat_app(lambda _body, _count: "yes")

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("completions"):
            ports.append(scope["client"][1])
        await app(scope, receive, send)

    with serving(noting) as url:
        asyncio.run(run(url))
    assert len(set(ports)) == 2


def test_server_says_whether_to_retry(tmp_path: Path) -> None:
    def answer(_body: Any, count: int) -> Any:
        said = {"x-should-retry": "true" if count == 1 else "false"}
        return JSONResponse({"error": {"message": "no"}}, status_code=400 if count == 1 else 500, headers=said)

    app = chat_app(answer)
    with serving(app) as url:
        replies, _ = ask_all(url, tmp_path, 1)
    assert replies[0].error == "HTTP 500: no" and app.state.counted["count"] == 2


def test_more_connections_than_the_system_begins_with(tmp_path: Path) -> None:
    """256 open files are what macOS gives; 400 requests at once want more of them."""
    resource = pytest.importorskip("resource")
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running_teacher(TeacherConfig(latency_ms=400)) as url:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, given[1]))
        try:
            _, tally = ask_all(url, tmp_path, 600, concurrency=400, retries=0, timeout_s=60.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, given)
    assert (tally.requests, tally.failed) == (600, 0)


def test_more_connections_than_the_system_allows_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")

    def refuse(*_: Any) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(UserError, match=r"teacher\.concurrency needs 1128 open files, and the system allows 512"):
        ask_all("http://127.0.0.1:9/v1", tmp_path, 1, concurrency=1000)


def test_limit_of_the_server_is_found(tmp_path: Path) -> None:
    """A server that bears 12 at once, asked with a ceiling of 200: all are answered, at little more than its limit."""
    with running_teacher(TeacherConfig(latency_ms=20, max_concurrency=12, retry_after_s=0.02)) as url:
        _, tally = ask_all(url, tmp_path, 400, concurrency=200, retries=12)
        refused = stats(url)["limited"]["concurrency"]
    assert tally.failed == 0 and tally.rate_limited == refused < 300
    assert tally.limit < 60 and tally.in_flight == tally.waiting == 0


def test_tokens_a_minute_keep_within_the_servers_limit(tmp_path: Path) -> None:
    """A server that counts as OpenAI does is asked so that it hardly ever refuses."""
    # A request is counted as its prompt and its max_tokens, some 60: twenty a second.
    with running_teacher(TeacherConfig(tokens_per_minute=72_000)) as url:
        _, tally = ask_all(url, tmp_path, 60, tokens_per_minute=72_000, max_tokens=30)
        refused = stats(url)["limited"]["tokens"]
    assert tally.failed == 0 and refused <= 2


def test_call_of_a_tool_is_an_answer(tmp_path: Path) -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "alarm", "arguments": '{"at": 7}'}},
        {"id": "c2", "type": "function", "function": {"name": "lamp", "arguments": {"on": True}}},
    ]
    sent: list[Any] = []

    def answer(body: Any, _count: int) -> Any:
        sent.append(body)
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        return JSONResponse({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE})

    tools = [{"type": "function", "function": {"name": "alarm"}}]
    with serving(chat_app(answer)) as url:
        extra = {"tools": tools, "tool_choice": "auto"}
        live, _ = ask_all(url, tmp_path, 1, extra=extra)
        cached, tally = ask_all(url, tmp_path, 1, extra=extra)
    expected = (ToolCall("c1", "alarm", '{"at": 7}'), ToolCall("c2", "lamp", '{"on": true}'))
    assert live[0].tool_calls == cached[0].tool_calls == expected
    assert (live[0].text, live[0].finish_reason, live[0].cached, cached[0].cached) == ("", "tool_calls", False, True)
    assert (sent[0]["tools"], sent[0]["tool_choice"], tally.from_cache) == (tools, "auto", 1)


@pytest.mark.parametrize(
    ("message", "finish", "refusal"),
    [
        ({"content": None, "refusal": "I cannot help with that."}, "stop", "I cannot help with that."),
        ({"content": None}, "content_filter", "stopped by the teacher's content filter"),
        ({"content": "Half of"}, "content_filter", "stopped by the teacher's content filter"),
    ],
)
def test_refusal_is_an_answer_that_says_so(tmp_path: Path, message: Any, finish: str, refusal: str) -> None:
    choice = {"message": {"role": "assistant"} | message, "finish_reason": finish}
    app = chat_app(lambda _body, _count: JSONResponse({"choices": [choice], "usage": USAGE}))
    with serving(app) as url:
        replies, tally = ask_all(url, tmp_path, 1)
    assert (replies[0].refusal, replies[0].error, replies[0].finish_reason) == (refusal, None, finish)
    assert app.state.counted["count"] == 1 and tally.failed == 0
    assert rows_of(tmp_path)[0].state == "done"


def test_tokens_that_ran_out_before_any_text_are_not_paid_for_again(tmp_path: Path) -> None:
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": "length"}
    app = chat_app(lambda _body, _count: JSONResponse({"choices": [choice], "usage": USAGE}))
    with serving(app) as url:
        replies, _ = ask_all(url, tmp_path, 1)
    assert (replies[0].text, replies[0].finish_reason, replies[0].error) == ("", "length", None)
    assert app.state.counted["count"] == 1


def test_log_probabilities_are_the_same_live_and_from_the_ledger(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig()) as url:
        extra = {"logprobs": True, "top_logprobs": 5}
        live, _ = ask_all(url, tmp_path, 3, extra=extra)
        cached, tally = ask_all(url, tmp_path, 3, extra=extra)
    assert tally.from_cache == 3
    for one, other in zip(live, cached, strict=True):
        assert one.logprobs and one.logprobs == other.logprobs
        assert "".join(entry["token"] for entry in one.logprobs) == one.text
        assert all(len(entry["top_logprobs"]) == 5 and "bytes" not in entry for entry in one.logprobs)


def test_one_who_stops_waiting_does_not_stop_the_request(tmp_path: Path) -> None:
    async def run(url: str) -> Tally:
        teacher = Teacher(base_url=url)
        with Ledger(tmp_path / "l.sqlite") as ledger:
            async with connected(teacher, url, ledger) as client:
                ask = Ask("e", "m", [{"role": "user", "content": "x"}], 0.0, 8, 0, 0)
                task = asyncio.ensure_future(client.ask(ask))
                while not client.tally.in_flight:
                    await asyncio.sleep(0.001)
                task.cancel()
            return client.tally

    with serving(chat_app(lambda _body, _count: time.sleep(0.2) or "yes")) as url:
        assert asyncio.run(run(url)).requests == 1
    assert [row.state for row in rows_of(tmp_path)] == ["done"]


def test_same_request_from_two_is_sent_once(tmp_path: Path) -> None:
    app = chat_app(lambda _body, _count: "yes")

    async def run(url: str) -> None:
        with Ledger(tmp_path / "l.sqlite") as ledger:
            async with connected(Teacher(base_url=url), url, ledger) as client:
                ask = Ask("e", "m", [{"role": "user", "content": "x"}], 0.0, 8, 0, 0)
                replies = await asyncio.gather(*(client.ask(ask) for _ in range(5)))
                assert {reply.text for reply in replies} == {"yes"}

    with serving(app) as url:
        asyncio.run(run(url))
    assert app.state.counted["count"] == 1


def test_money_is_zero_unless_both_prices_are_given(tmp_path: Path) -> None:
    with serving(chat_app(lambda _body, _count: "yes")) as url:
        _, tally = ask_all(url, tmp_path, 1, price_in=1.0)
    assert tally.price == 0.0 and rows_of(tmp_path)[0].price is None


_ASKING = """
import asyncio, sys
from pathlib import Path
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.recipe import Teacher
from pocketstill_pipeline.session import Session
from pocketstill_pipeline.teacher.client import connected

url, folder, question, requests = sys.argv[1:]
teacher = Teacher(base_url=url, concurrency=16, price_in=1.0, price_out=2.0, retries=9)

async def main():
    with Ledger(Path(folder) / "l.sqlite") as ledger:
        async with connected(teacher, url, ledger) as client:
            session = Session(client, teacher, "e", 1)
            ask = lambda i: session.ask([{"role": "user", "content": f"{question} {i}"}])
            async for _ in session.map(ask, range(int(requests))):
                pass

asyncio.run(main())
"""


def start_asking(url: str, folder: Path, requests: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", _ASKING, url, str(folder), COIN, str(requests)], env=environment)


def answered(folder: Path) -> dict[str, Any]:
    """The answered rows of a ledger that may be in use, or not there yet: text, price and attempts by key."""
    if not (folder / "l.sqlite").exists():
        return {}
    return {
        row.key: (json.loads(row.response)["choices"][0]["message"], row.price, row.attempts)
        for row in rows_of(folder)
        if row.state == "done"
    }


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_ask_nothing_twice(tmp_path: Path) -> None:
    """kill -9 at random moments, with faults: in the end there is what one run would have brought, paid for once."""
    requests, rng, kills, before = 2000, random.Random(11), 0, dict[str, Any]()
    config = TeacherConfig(latency_ms=40, faults=0.2, fault_kinds=("rate_limit", "server_error", "cut", "malformed"))
    with running_teacher(config) as url:
        while kills < 20:
            with start_asking(url, tmp_path / "cut", requests) as process:
                so_far = stats(url)["requests"]
                while stats(url)["requests"] < so_far + 20 and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(rng.random() * 0.2)
                assert process.poll() is None, "it was done before it was killed"
                process.kill()
            kills += 1
            now = answered(tmp_path / "cut")
            # What was answered stays as it was: neither asked nor paid for again.
            assert before.items() <= now.items() and len(now) > len(before)
            before = now
        for folder in ("cut", "whole"):
            with start_asking(url, tmp_path / folder, requests) as process:
                assert process.wait(300) == 0
            if folder == "cut":
                # Answered twice was only what was on its way at a kill: at most what may be at once.
                assert stats(url)["answered_again"] <= 20 * 16
    cut, whole = answered(tmp_path / "cut"), answered(tmp_path / "whole")
    assert len(cut) == requests and before.items() <= cut.items()
    assert {key: row[:2] for key, row in cut.items()} == {key: row[:2] for key, row in whole.items()}
