"""Faults and limits of the local teacher, as a client meets them over loopback HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from running import COMMAND
from teaching import KINDS, recipe_of, serving

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect, read_questions
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.prompts import first_request
from pocketstill_pipeline.teacher import FAULT_KINDS, TeacherConfig
from pocketstill_pipeline.teacher.faults import Limits, Served
from pocketstill_pipeline.teacher.protocol import ProtocolError
from pocketstill_pipeline.teacher.server import make_app, running_teacher

MESSAGES = first_request("A coin is heads up. Ana flips the coin. Is the coin still heads up?", "yes_no")


@contextmanager
def teacher(**config: Any) -> Iterator[str]:
    with serving(make_app(TeacherConfig(mistakes=0, noise=0, **config))) as url:
        yield url


def post(url: str, body: bytes | None = None, seed: int = 0, **more: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a chat request, however broken; an incomplete body raises IncompleteRead."""
    given = {"model": "embedded", "messages": MESSAGES, "temperature": 0, "seed": seed} | more
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request("POST", "/v1/chat/completions", body or json.dumps(given).encode())
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def stats(url: str) -> Any:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=20) as response:
        return json.load(response)


def whole(url: str, **more: Any) -> Any:
    return json.loads(post(url, **more)[2])["choices"][0]


def test_rate_limit_says_when_to_come_again() -> None:
    with teacher(faults=1, fault_kinds=("rate_limit",), retry_after_s=1.5) as url:
        status, headers, body = post(url)
    assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "2", "1500")
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"


def test_server_error_is_one() -> None:
    with teacher(faults=1, fault_kinds=("server_error",)) as url:
        status, _, body = post(url)
    assert status == 500 and json.loads(body)["error"]["message"]


def test_hang_lasts_as_long_as_it_is_told() -> None:
    with teacher(faults=1, fault_kinds=("hang",), hang_s=0.4) as url:
        started = time.perf_counter()
        assert post(url)[0] == 200
        assert 0.4 <= time.perf_counter() - started < 3


def test_client_that_left_a_hang_was_not_answered() -> None:
    with teacher(faults=1, fault_kinds=("hang",), hang_s=60, max_concurrency=1) as url:
        impatient = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=0.3)
        with impatient as api, pytest.raises(openai.APITimeoutError):
            api.chat.completions.create(model="embedded", messages=MESSAGES)  # type: ignore[arg-type]
        deadline = time.monotonic() + 10
        # Its place among the requests at once is free again long before the hang is over.
        while post(url, b"{}", model="x")[0] == 429 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stats(url)["requests"] == 0 and stats(url)["faults"]["hang"] == 1


def test_cut_body_is_incomplete() -> None:
    with teacher(faults=1, fault_kinds=("cut",)) as url, pytest.raises(http.client.IncompleteRead):
        post(url)


def test_cut_stream_ends_without_its_end() -> None:
    with teacher(faults=1, fault_kinds=("cut",)) as url, pytest.raises(http.client.IncompleteRead) as caught:
        post(url, stream=True)
    assert caught.value.partial.startswith(b"data: {") and b"[DONE]" not in caught.value.partial


def test_malformed_body_is_no_json() -> None:
    with teacher(faults=1, fault_kinds=("malformed",)) as url:
        status, headers, body = post(url)
        with pytest.raises(ValueError):
            json.loads(body)
        assert (status, headers["content-type"]) == (200, "application/json")
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as api, pytest.raises(ValueError):
            list(api.chat.completions.create(model="embedded", messages=MESSAGES, stream=True))  # type: ignore[call-overload]


def test_truncated_answer_says_so() -> None:
    with teacher() as url:
        right = whole(url)
    with teacher(faults=1, fault_kinds=("truncated",)) as url:
        cut = whole(url)
    assert cut["finish_reason"] == "length" and right["finish_reason"] == "stop"
    said, half = right["message"]["content"], cut["message"]["content"]
    assert said.startswith(half) and 0 < len(half) < len(said)


def test_faulty_answers_cost_the_connection_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """A server process that cuts connections on demand does not fill the terminal with complaints."""
    with running_teacher(TeacherConfig(faults=1, fault_kinds=("cut",))) as url:
        for _ in range(3):
            with pytest.raises(http.client.IncompleteRead):
                post(url)
    assert capfd.readouterr().err == ""


def outcomes(url: str, order: list[int]) -> dict[int, list[str]]:
    """What three attempts at each of some requests came to."""
    found: dict[int, list[str]] = {}
    for seed in order * 3:
        try:
            status, _, body = post(url, seed=seed)
            said = json.loads(body)["choices"][0]["finish_reason"] if status == 200 else str(status)
        except http.client.IncompleteRead:
            said = "cut"
        except ValueError:
            said = "malformed"
        found.setdefault(seed, []).append(said)
    return found


def test_faults_strike_the_same_attempts_in_every_order_at_their_rate() -> None:
    config = {"faults": 0.3, "hang_s": 0.0, "seed": 4}
    with teacher(**config) as url:
        first = outcomes(url, list(range(100)))
        counts = stats(url)
    with teacher(**config) as url:
        assert outcomes(url, list(range(99, -1, -1))) == first
    with teacher(**config | {"seed": 5}) as url:
        assert outcomes(url, list(range(100))) != first
    struck = sum(counts["faults"].values())
    # Four standard deviations of a binomial at 300 draws.
    assert abs(struck / 300 - 0.3) < 0.106 and all(counts["faults"][kind] for kind in FAULT_KINDS)
    # A request that failed may succeed when it is asked again.
    assert any(said[0] != "stop" and "stop" in said for said in first.values())
    assert counts["requests"] + sum(counts["faults"][k] for k in FAULT_KINDS[:2] + FAULT_KINDS[3:5]) == 300


def test_retries_of_the_official_client_get_through() -> None:
    kinds = ("rate_limit", "server_error", "hang", "cut")
    with teacher(faults=0.2, fault_kinds=kinds, hang_s=30, retry_after_s=0.01) as url:
        # What is answered late is asked again: no busy machine should be that late.
        with openai.OpenAI(base_url=url, api_key="none", max_retries=6, timeout=3) as api:
            for seed in range(12):
                said = api.chat.completions.create(model="embedded", messages=MESSAGES, seed=seed, temperature=0)  # type: ignore[arg-type]
                assert said.choices[0].message.content
        found = stats(url)
        assert sum(found["faults"].values()) > 0
        assert (found["requests"], found["distinct"], found["answered_again"]) == (12, 12, 0)


def test_request_that_was_answered_before_is_told() -> None:
    with teacher() as url:
        for seed in (1, 2, 1, 1):
            post(url, seed=seed)
        assert {k: stats(url)[k] for k in ("requests", "distinct", "answered_again")} == {
            "requests": 4,
            "distinct": 2,
            "answered_again": 1,
        }


def test_requests_beyond_a_minute_s_are_refused_with_their_headers() -> None:
    with teacher(requests_per_minute=5) as url:
        found = [post(url, seed=seed) for seed in range(7)]
    assert [status for status, _, _ in found] == [200] * 5 + [429] * 2
    assert [headers["x-ratelimit-remaining-requests"] for _, headers, _ in found] == list("4321000")
    refused = found[-1][1]
    assert refused["x-ratelimit-limit-requests"] == "5"
    # A request becomes free every 12 s.
    assert 8 <= int(refused["retry-after"]) <= 12


def test_tokens_beyond_a_minute_s_are_refused() -> None:
    with teacher(tokens_per_minute=400) as url:
        found = [post(url, seed=seed, max_tokens=100)[0] for seed in range(5)]
        assert stats(url)["limited"] == {"requests": 0, "tokens": 2, "concurrency": 0}
    assert found == [200] * 3 + [429] * 2


def test_bucket_fills_evenly() -> None:
    now = [0.0]
    config = TeacherConfig(requests_per_minute=60)
    limits = Limits(config, Served(config), clock=lambda: now[0])

    def admitted() -> bool:
        try:
            with limits.admitted(0):
                return True
        except ProtocolError:
            return False

    assert [admitted() for _ in range(61)] == [True] * 60 + [False]
    now[0] = 2.0
    assert [admitted() for _ in range(3)] == [True, True, False]


def test_requests_at_once_are_limited() -> None:
    async def all_at_once(url: str) -> list[int]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:

            async def one(seed: int) -> int:
                try:
                    await api.chat.completions.create(model="embedded", messages=MESSAGES, seed=seed)  # type: ignore[arg-type]
                except openai.RateLimitError as error:
                    assert float(error.response.headers["retry-after-ms"]) > 0
                    return 429
                return 200

            return await asyncio.gather(*map(one, range(6)))

    with teacher(max_concurrency=2, latency_ms=1500) as url:
        assert sorted(asyncio.run(all_at_once(url))) == [200] * 2 + [429] * 4
        assert stats(url)["limited"]["concurrency"] == 4


def test_command_serves_with_faults_and_limits() -> None:
    flags = ["--port", "0", "--faults", "1", "--fault", "server_error", "--requests-per-minute", "2", "--model", "m"]
    with subprocess.Popen([COMMAND, "teacher", "serve", *flags], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            assert said["model"] == "m"
            assert [post(said["base_url"], model="m")[0] for _ in range(3)] == [500, 500, 429]
            assert stats(said["base_url"])["faults"]["server_error"] == 2
        finally:
            process.send_signal(signal.SIGINT)


def test_unknown_kind_of_fault_is_named() -> None:
    with pytest.raises(UserError, match="'explosion' is unknown; choose from rate_limit"):
        make_app(TeacherConfig(fault_kinds=("cut", "explosion")))


@pytest.mark.parametrize(("mode", "retries"), [("live", 6), ("live", 0), ("batch", 8)])
def test_every_question_ends_answered_or_listed_with_its_reason(tmp_path: Path, mode: str, retries: int) -> None:
    """A fifth of the attempts struck by faults of all kinds, through a whole collection."""
    skills = [{"name": name, "kind": kind, "questions": 8, "heldout": 2} for name, kind in KINDS.items()]
    settings = {"mode": mode, "retries": retries, "timeout_s": 1.5, "concurrency": 32, "model": "embedded"}
    config = TeacherConfig(faults=0.2, hang_s=5.0, retry_after_s=0.02, seed=8)
    with running_teacher(config) as url:
        result = collect(recipe_of({"base_url": url} | settings, skills), tmp_path)
        served = stats(url)
    questions = read_questions(tmp_path)
    with (tmp_path / "samples" / "zero_shot_cot.jsonl").open(encoding="utf-8") as lines:
        samples = [Elicited.from_dict(json.loads(line)) for line in lines]
    # Every question of every skill, as often as it is to be sampled, and each once.
    assert len({one.id for one in samples}) == len(samples) == result.samples
    assert {one.id.rpartition("/")[0] for one in samples} == {question.id for question in questions}
    reasons = {one.reason for one in samples}
    assert reasons <= {None, "failed_request", "truncated"} and {None, "truncated"} <= reasons
    assert all(one.detail for one in samples if one.reason == "failed_request")
    assert all(one.completion for one in samples if one.reason is None)
    assert ("failed_request" in reasons) == (retries == 0) == (result.failed > 0)
    # All kinds were served, and nothing that was answered was asked again.
    assert all(served["faults"][kind] for kind in FAULT_KINDS)
    assert served["answered_again"] == 0
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        found = list(ledger.rows())
    assert {row.state for row in found} <= {"done", "failed"} and len(found) == result.requests
    assert sum(row.state == "done" for row in found) == served["requests"]
    assert all(row.error for row in found if row.state == "failed")
