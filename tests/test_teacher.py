"""The embedded teacher over real loopback HTTP, asked with the openai package and with raw requests."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from teaching import KINDS, free_port

from pocketstill import grading
from pocketstill.errors import UserError
from pocketstill_pipeline import problems
from pocketstill_pipeline.prompts import (
    answer_prompt,
    answer_request,
    asked_kind,
    asked_question,
    asks_for_answer,
    first_request,
)
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.embedded import problems as embedded
from pocketstill_pipeline.teacher.protocol import count_tokens, pieces
from pocketstill_pipeline.teacher.server import running_teacher, serve

COIN = "A coin is heads up. Ana flips the coin. Bob does not flip the coin. Is the coin still heads up?"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_teacher(TeacherConfig(mistakes=0.3, noise=0.5, seed=3)) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as api:
        yield api


def raw(url: str, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.request(method, path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    status, text = response.status, response.read()
    connection.close()
    return status, json.loads(text)


def ask(client: openai.OpenAI, messages: Any, **settings: Any) -> Any:
    return client.chat.completions.create(model="embedded", messages=messages, **settings)


def sampled(skill: str, count: int) -> list[problems.Problem]:
    rng = random.Random(skill)
    return [problems.sample(skill, rng) for _ in range(count)]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded"]


def test_answer_follows_from_its_own_rationale(client: openai.OpenAI) -> None:
    """Right or wrong, the second step says what the first one came to."""
    wrong = 0
    for seed in range(30):
        settings = {"temperature": 0.8, "seed": seed}
        said = ask(client, first_request(COIN, "yes_no"), **settings).choices[0].message.content
        second = ask(client, answer_request(COIN, "yes_no", said.strip()), **settings).choices[0].message.content
        stated = said.strip().rstrip(".").split()[-1]
        assert grading.extract(second, "yes_no") == stated
        wrong += stated != "no"
    assert 0 < wrong < 30


def test_every_choice_of_n_has_its_own_consistent_answer(client: openai.OpenAI) -> None:
    settings = {"temperature": 1.0, "seed": 5}
    choices = ask(client, first_request(COIN, "yes_no"), n=8, **settings).choices
    assert [choice.index for choice in choices] == list(range(8))
    assert len({choice.message.content for choice in choices}) > 2
    for choice in choices:
        messages = answer_request(COIN, "yes_no", choice.message.content)
        second = ask(client, messages, **settings).choices[0].message.content
        assert grading.extract(second, "yes_no") == choice.message.content.strip().rstrip(".").split()[-1]


def test_temperature_zero_ignores_the_seed(client: openai.OpenAI) -> None:
    said = {
        ask(client, first_request(COIN, "yes_no"), temperature=0, seed=s).choices[0].message.content for s in range(9)
    }
    assert len(said) == 1


def test_same_seed_same_answer_other_seed_another(client: openai.OpenAI) -> None:
    def said(seed: int) -> str:
        return str(ask(client, first_request(COIN, "yes_no"), temperature=0.7, seed=seed).choices[0].message.content)

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(9)}) > 1


def test_stream_says_the_same_with_usage(client: openai.OpenAI) -> None:
    messages, settings = first_request(COIN, "yes_no"), {"temperature": 0.7, "seed": 4}
    whole = ask(client, messages, **settings)
    chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}, **settings))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert text == whole.choices[0].message.content
    assert reasons == ["stop"]
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens == count_tokens(text)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_token_limit_cuts_and_says_so(client: openai.OpenAI, name: str) -> None:
    whole = ask(client, first_request(COIN, "yes_no"), temperature=0).choices[0].message.content
    cut = ask(client, first_request(COIN, "yes_no"), temperature=0, **{name: 6})
    assert cut.choices[0].finish_reason == "length"
    assert whole.startswith(cut.choices[0].message.content) and len(cut.choices[0].message.content) < len(whole)
    assert cut.usage.completion_tokens == 6


def test_stop_text_ends_the_answer(client: openai.OpenAI) -> None:
    choice = ask(client, first_request(COIN, "yes_no"), temperature=0, stop=["Bob"]).choices[0]
    assert "Bob" not in choice.message.content and choice.finish_reason == "stop"


def test_tool_call_is_answered_in_one_request(client: openai.OpenAI) -> None:
    messages = first_request("Set a timer for 12 minutes.", "json")
    said = [ask(client, messages, temperature=1, seed=s).choices[0].message.content for s in range(12)]
    gold = '{"tool": "set_timer", "arguments": {"minutes": 12}}'
    right = [grading.equal(grading.extract(text, "json"), gold, "json") for text in said]
    assert any(right) and not all(right)


def test_foreign_rationale_is_read_to_its_end(client: openai.OpenAI) -> None:
    messages = answer_request(COIN, "yes_no", "Nobody knows why, but after all of that the answer must be yes.")
    assert grading.extract(ask(client, messages).choices[0].message.content, "yes_no") == "yes"


def test_unknown_question_gets_no_answer(client: openai.OpenAI) -> None:
    said = ask(client, first_request("Why is the sky blue?", "text")).choices[0].message.content
    assert said == embedded.UNKNOWN


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"n": 0}, 400, "n"),
        ({"n": 1000}, 400, "n"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"seed": 0.5}, 400, "seed"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"stop": [1]}, 400, "stop"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0]"),
        ({"model": 7}, 400, "model"),
        ({"model": "gpt-x"}, 404, "model"),
    ],
)
def test_bad_input_is_refused_in_the_protocols_words(url: str, change: Any, status: int, param: str) -> None:
    body = {"model": "embedded", "messages": [{"role": "user", "content": "x"}]} | change
    got, answer = raw(url, "POST", "/v1/chat/completions", json.dumps(body).encode())
    assert (got, answer["error"]["param"]) == (status, param)
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b" " * (1 << 20) + b"{}", 413),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/embeddings", b"{}", 404),
    ],
)
def test_errors_are_json(url: str, method: str, path: str, body: bytes | None, status: int) -> None:
    got, answer = raw(url, method, path, body)
    assert got == status and answer["error"]["message"]


@pytest.mark.parametrize("skill", problems.SKILLS)
def test_noise_never_makes_a_right_answer_wrong(skill: str) -> None:
    config = TeacherConfig(mistakes=0, noise=1)
    for index, problem in enumerate(sampled(skill, 300)):
        drawn = embedded.draw(config, problem.question, str(index))
        assert drawn is not None
        found = grading.extract(drawn.answer, problem.kind)
        assert grading.equal(found, problem.gold, problem.kind), drawn.answer


@pytest.mark.parametrize("skill", problems.SKILLS)
def test_mistakes_come_at_their_rate(skill: str) -> None:
    config, wrong = TeacherConfig(mistakes=0.25, noise=0.5), 0
    for index, problem in enumerate(sampled(skill, 600)):
        drawn = embedded.draw(config, problem.question, str(index))
        assert drawn is not None
        wrong += not grading.equal(grading.extract(drawn.answer, problem.kind), problem.gold, problem.kind)
    # Four standard deviations of a binomial at 600 draws.
    assert abs(wrong / 600 - 0.25) < 0.071


def test_no_mistakes_at_rate_zero_all_at_rate_one() -> None:
    for rate in (0, 1):
        config = TeacherConfig(mistakes=rate, noise=0)
        for problem in sampled("shuffled_objects", 100):
            drawn = embedded.draw(config, problem.question, "0")
            assert drawn is not None
            assert grading.equal(grading.extract(drawn.answer, "choice"), problem.gold, "choice") == (rate == 0)


@pytest.mark.parametrize("skill", problems.SKILLS)
def test_requests_say_what_they_ask(skill: str) -> None:
    for problem in sampled(skill, 20):
        messages = first_request(problem.question, problem.kind)
        if problem.kind == "json":
            assert messages[0]["role"] == "system" and messages[1]["content"] == problem.question
            continue
        assert asked_question(messages[-1]["content"]) == problem.question
        prompt = answer_prompt(problem.question, problem.kind)
        assert asks_for_answer(prompt) and asked_kind(prompt) == KINDS[skill]


def test_answer_prompts_are_the_published_ones() -> None:
    options = "Which? Answer Choices: (A) a (B) b (C) c (D) d (E) e"
    assert answer_prompt("", "number") == "Therefore, the answer (arabic numerals) is"
    assert answer_prompt(options, "choice") == "Therefore, among A through E, the answer is"
    assert answer_prompt("", "yes_no") == "Therefore, the answer (Yes or No) is"
    assert answer_prompt("", "text") == "Therefore, the answer is"


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ("Q: How many?\nA: Let's think step by step.", "How many?"),
        ("How many?\n\nLet's think step by step", "How many?"),
        ("  Q: Plan A: why?  A:  Let's think step by step. ", "Plan A: why?"),
        ("How many?", None),
        (" " * 500_000 + "x", None),
    ],
)
def test_first_request_is_recognised(content: str, question: str | None) -> None:
    assert asked_question(content) == question


@pytest.mark.parametrize(
    "text",
    [
        " " * 200_000,
        "word" + " " * 200_000 + "!",
        "",
        "  ",
        "a b",
        " a, b.\n\nc  ",
        '{"x": [1, 2]}',
        "naïve — 漢字 🙂 x\t",
    ],
)
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_child_dies_with_its_parent() -> None:
    program = (
        "import time\n"
        "from pocketstill_pipeline.teacher import TeacherConfig\n"
        "from pocketstill_pipeline.teacher.server import running_teacher\n"
        "with running_teacher(TeacherConfig()) as url:\n"
        "    print(url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert raw(url, "GET", "/v1/models")[0] == 200
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            raw(url, "GET", "/v1/models")
            time.sleep(0.05)


def test_only_loopback_is_served() -> None:
    with pytest.raises(UserError, match="loopback only"):
        serve(TeacherConfig(), host="0.0.0.0")


def test_taken_port_is_a_user_error(url: str) -> None:
    with pytest.raises(UserError, match="--port"):
        serve(TeacherConfig(), port=urlsplit(url).port or 0)


def test_serve_prints_its_url_and_stops_at_an_interrupt() -> None:
    port = free_port()
    program = (
        "from pocketstill_pipeline.teacher import TeacherConfig\n"
        "from pocketstill_pipeline.teacher.server import serve\n"
        f"serve(TeacherConfig(model='m'), port={port})\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said == {"base_url": f"http://127.0.0.1:{port}/v1", "model": "m"}
        # The line says that it listens: a request made at once is answered.
        assert raw(said["base_url"], "GET", "/v1/models")[1]["data"][0]["id"] == "m"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 0 and err == ""
