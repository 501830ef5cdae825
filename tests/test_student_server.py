"""A bundle served as a teacher: real answers and real probabilities, through the official client over loopback."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from teaching import serving

import pocketstill
from pocketstill.errors import UserError
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.server import make_app, running_teacher

MESSAGES = [{"role": "user", "content": "A coin is heads up. Ana flips the coin. Is the coin still heads up?"}]


@pytest.fixture(scope="module", params=["onnx-int4", "gguf-q8_0"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(tiny_bundle: Path, variant: str) -> Iterator[openai.OpenAI]:
    app = make_app(TeacherConfig(model="tiny", student=str(tiny_bundle), variant=variant))
    with serving(app) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as api:
        yield api


@pytest.fixture(scope="module")
def model(tiny_bundle: Path, variant: str) -> Iterator[Any]:
    with pocketstill.load(tiny_bundle, variant) as loaded:
        yield loaded


def ask(client: openai.OpenAI, messages: Any = MESSAGES, **settings: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, **{"temperature": 0, **settings})


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 5}, {"temperature": 1.2, "top_p": 0.6, "seed": 6}]
)
def test_answer_is_the_model_s_own(client: openai.OpenAI, model: Any, sampling: dict[str, Any]) -> None:
    said = ask(client, max_tokens=16, **sampling)
    own = model.answer(MESSAGES, max_new_tokens=16, **sampling)
    assert said.choices[0].message.content == own.text
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (own.prompt_tokens, own.completion_tokens)
    assert said.choices[0].finish_reason == ("length" if own.completion_tokens == 16 else "stop")


def test_every_choice_is_another_draw(client: openai.OpenAI) -> None:
    said = ask(client, n=5, temperature=1.5, seed=1, max_tokens=8)
    texts = [choice.message.content for choice in said.choices]
    assert len(set(texts)) == 5
    again = ask(client, n=5, temperature=1.5, seed=1, max_tokens=8)
    assert [choice.message.content for choice in again.choices] == texts


def test_stop_text_ends_the_answer_and_its_tokens(client: openai.OpenAI) -> None:
    whole = ask(client, max_tokens=24).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    choice = ask(client, max_tokens=24, stop=[stop], logprobs=True).choices[0]
    assert choice.message.content == whole.partition(stop)[0] and choice.finish_reason == "stop"
    written = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert written.decode("utf-8", "replace").startswith(choice.message.content)
    shorter = b"".join(bytes(token.bytes) for token in choice.logprobs.content[:-1])
    assert len(shorter.decode("utf-8", "replace")) < len(choice.message.content)


def test_log_probabilities_are_those_of_the_engine_s_logits(client: openai.OpenAI, model: Any) -> None:
    choice = ask(client, max_tokens=12, logprobs=True, top_logprobs=20).choices[0]
    prompt = model.prompt_ids(MESSAGES)
    ids = list(model.stream_ids(MESSAGES, max_new_tokens=12, temperature=0.0))
    logits = model.engine.logits(prompt + ids)[len(prompt) - 1 : -1].astype(np.float64)
    # Written out here: the logarithm of softmax.
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    tokens = choice.logprobs.content
    assert len(tokens) == len(ids) == 12
    for token, row, chosen in zip(tokens, expected, ids, strict=True):
        assert token.logprob == pytest.approx(row[chosen], abs=2e-3)
        ranked = [other.logprob for other in token.top_logprobs]
        assert ranked == pytest.approx(np.sort(row)[::-1][:20], abs=2e-3)
        assert sum(map(math.exp, ranked)) <= 1 + 1e-6
        # Greedy: the token said is the likeliest.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, ranked[0])


def test_bytes_of_the_tokens_are_those_of_the_text(client: openai.OpenAI) -> None:
    choice = ask(client, max_tokens=24, logprobs=True, temperature=1, seed=3).choices[0]
    written = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert written.decode("utf-8", "replace") == choice.message.content


def test_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"max_tokens": 24, "temperature": 1, "seed": 3}
    whole = ask(client, **settings).choices[0].message.content
    for more in ({}, {"logprobs": True}):
        chunks = ask(client, stream=True, **settings, **more)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_prompt_that_does_not_fit_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": "heads " * 400}])
    assert caught.value.code == "context_length_exceeded" and "context" in str(caught.value)


def test_full_context_ends_the_answer_and_says_so(client: openai.OpenAI) -> None:
    said = ask(client, [{"role": "user", "content": "heads" + " heads" * 235}], max_tokens=200)
    assert said.usage.total_tokens <= 256
    assert said.choices[0].finish_reason == ("length" if said.usage.total_tokens == 256 else "stop")


def test_requests_at_once_are_answered_one_after_another_by_a_process_of_its_own(tiny_bundle: Path) -> None:
    async def all_at_once(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
            told = [[{"role": "user", "content": f"heads {n}"}] for n in range(12)]
            settings: dict[str, Any] = {"model": "embedded", "max_tokens": 8, "temperature": 0}
            found = await asyncio.gather(*(api.chat.completions.create(messages=one, **settings) for one in told))
            return [one.choices[0].message.content or "" for one in found]

    with running_teacher(TeacherConfig(student=str(tiny_bundle), variant="onnx-fp32")) as url:
        said = asyncio.run(all_at_once(url))
    with pocketstill.load(tiny_bundle, "onnx-fp32") as own:
        expected = [own.answer(f"heads {n}", max_new_tokens=8, temperature=0.0).text for n in range(12)]
    assert said == expected


def test_missing_bundle_and_unknown_variant_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"), running_teacher(TeacherConfig(student=str(tmp_path / "nowhere"))):
        pass
    with pytest.raises(UserError, match="onnx-int9"):
        make_app(TeacherConfig(student=str(tiny_bundle), variant="onnx-int9"))
