"""Files and batches of the local teacher, asked with the official client over loopback HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from teaching import serving

from pocketstill_pipeline.prompts import first_request
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.server import make_app

ENDPOINT = "/v1/chat/completions"
COIN = "A coin is heads up. Ana flips the coin. Is the coin still heads up?"
ENDED = ("completed", "failed", "expired", "cancelled")


@contextmanager
def teacher(**config: Any) -> Iterator[openai.OpenAI]:
    app = make_app(TeacherConfig(mistakes=0, noise=0, **config))
    with serving(app) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as api:
        yield api


def line(number: int, **more: Any) -> dict[str, Any]:
    body = {"model": "embedded", "messages": first_request(COIN, "yes_no"), "temperature": 0.7, "seed": number}
    return {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body} | more


def jsonl(lines: list[Any]) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines)


def started(api: openai.OpenAI, lines: list[Any], **more: Any) -> Any:
    file = api.files.create(file=("requests.jsonl", jsonl(lines)), purpose="batch")
    return api.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **more)


def ended(api: openai.OpenAI, batch: Any) -> Any:
    deadline = time.monotonic() + 20
    while batch.status not in ENDED and time.monotonic() < deadline:
        time.sleep(0.01)
        batch = api.batches.retrieve(batch.id)
    return batch


def rows(api: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    found = [json.loads(text) for text in api.files.content(file_id).text.splitlines()]
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


def test_uploaded_file_is_kept_as_it_is_until_it_is_deleted() -> None:
    content = b'{"a": "--boundary\\r\\n"}\r\n\n\x00\xff tail'
    with teacher() as api:
        file = api.files.create(file=("some requests.jsonl", content), purpose="batch")
        assert (file.filename, file.bytes, file.purpose) == ("some requests.jsonl", len(content), "batch")
        assert api.files.retrieve(file.id) == file
        assert [found.id for found in api.files.list()] == [file.id]
        assert api.files.content(file.id).content == content
        assert api.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError, match="No such File"):
            api.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("name", "purpose", "param"), [("a.jsonl", "fine-tune", "purpose"), ("a.txt", "batch", "file")]
)
def test_file_of_no_use_to_a_batch_is_refused(name: str, purpose: Any, param: str) -> None:
    with teacher() as api, pytest.raises(openai.BadRequestError) as caught:
        api.files.create(file=(name, b"{}"), purpose=purpose)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n--b--"),
    ],
)
def test_upload_that_is_no_form_is_refused(content_type: str, body: bytes) -> None:
    with teacher() as api:
        request = urllib.request.Request(f"{api.base_url}files", body, {"content-type": content_type})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert answer.code == 400 and json.load(answer)["error"]["message"]


def test_batch_answers_every_line_as_a_live_request_is_answered() -> None:
    with teacher() as api:
        batch = ended(api, started(api, [line(n) for n in range(20)], metadata={"mine": "yes"}))
        assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
        assert (batch.request_counts.total, batch.request_counts.completed) == (20, 20)
        assert batch.metadata == {"mine": "yes"} and batch.expires_at - batch.created_at == 86_400
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
        found = rows(api, batch.output_file_id)
        for n in range(20):
            row = found[f"line-{n}"]
            assert row["error"] is None and row["response"]["status_code"] == 200 and row["response"]["request_id"]
            live = api.chat.completions.create(**line(n)["body"])
            assert row["response"]["body"]["choices"][0]["message"]["content"] == live.choices[0].message.content
            assert row["response"]["body"]["usage"] == live.usage.model_dump(exclude_none=True)


def test_line_that_cannot_be_asked_is_in_the_error_file() -> None:
    bad = line(1)
    bad["body"] = bad["body"] | {"temperature": 9}
    with teacher() as api:
        batch = ended(api, started(api, [line(0), bad]))
        assert batch.status == "completed" and batch.request_counts.failed == 1
        assert list(rows(api, batch.output_file_id)) == ["line-0"]
        row = rows(api, batch.error_file_id)["line-1"]
    assert row["response"]["status_code"] == 400
    assert row["response"]["body"]["error"]["param"] == "temperature"


def test_share_of_the_lines_fails_and_other_ones_the_next_time() -> None:
    with teacher(faults=0.3, fault_kinds=("rate_limit",), retry_after_s=0.01, seed=1) as api:
        api = api.with_options(max_retries=8)
        lines = [line(n) for n in range(100)]
        failed = []
        for _ in range(2):
            batch = ended(api, started(api, lines))
            good, bad = rows(api, batch.output_file_id), rows(api, batch.error_file_id)
            assert batch.status == "completed" and len(good) + len(bad) == 100 and not good.keys() & bad.keys()
            assert {row["response"]["status_code"] for row in bad.values()} == {429}
            failed.append(set(bad))
    # Four standard deviations of a binomial at 100 draws.
    assert all(abs(len(bad) - 30) < 19 for bad in failed) and failed[0] != failed[1]


def test_lines_beyond_the_window_expire() -> None:
    with teacher(batch_latency_s=1.0, batch_window_s=0.5) as api:
        batch = ended(api, started(api, [line(n) for n in range(10)]))
        assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("expired", 5, 5)
        assert list(rows(api, batch.output_file_id)) == [f"line-{n}" for n in range(5)]
        late = rows(api, batch.error_file_id)
    assert list(late) == [f"line-{n}" for n in range(5, 10)]
    assert all(row["response"] is None and row["error"]["code"] == "batch_expired" for row in late.values())


@pytest.mark.parametrize(
    ("second", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (line(0), "duplicate_custom_id", "custom_id"),
        (line(1, custom_id="x" * 65), "missing_required_parameter", "custom_id"),
        (line(1, url="/v1/embeddings"), "invalid_url", "url"),
        (line(1, method="GET"), "invalid_method", "method"),
        (line(1, body=None), "missing_required_parameter", "body"),
        (line(1, body=line(1)["body"] | {"model": "gpt-x"}), "model_not_found", "body.model"),
    ],
)
def test_broken_input_file_fails_the_batch_with_its_line(second: Any, code: str, param: str | None) -> None:
    with teacher() as api:
        batch = ended(api, started(api, [line(0), second]))
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert [(error.code, error.line, error.param) for error in batch.errors.data] == [(code, 2, param)]


def test_batch_beyond_the_tokens_under_way_fails() -> None:
    with teacher(batch_tokens=60) as api:
        batch = ended(api, started(api, [line(n) for n in range(3)]))
        assert (batch.status, batch.errors.data[0].code) == ("failed", "token_limit_exceeded")
        assert ended(api, started(api, [line(0)])).status == "completed"


def test_cancelled_batch_keeps_what_was_answered() -> None:
    with teacher(batch_latency_s=60) as api:
        batch = started(api, [line(n) for n in range(1200)])
        while batch.request_counts.completed < 3:
            time.sleep(0.02)
            batch = api.batches.retrieve(batch.id)
        assert batch.status == "in_progress"
        assert api.batches.cancel(batch.id).status == "cancelling"
        batch = ended(api, batch)
        assert batch.status == "cancelled" and batch.cancelling_at <= batch.cancelled_at
        assert 3 <= len(rows(api, batch.output_file_id)) == batch.request_counts.completed < 100
        with pytest.raises(openai.ConflictError):
            api.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"input_file_id": "file-none"}, "input_file_id"),
    ],
)
def test_wrong_batch_is_refused(change: Any, param: str) -> None:
    with teacher() as api:
        file = api.files.create(file=("requests.jsonl", jsonl([line(0)])), purpose="batch")
        given = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"} | change
        with pytest.raises(openai.BadRequestError) as caught:
            api.batches.create(**given)
    assert caught.value.param == param


def test_batches_are_listed_newest_first_page_by_page() -> None:
    with teacher() as api:
        made = [started(api, [line(0)]).id for _ in range(5)]
        assert [batch.id for batch in api.batches.list(limit=2)] == made[::-1]
        first = api.batches.list(limit=2)
        assert [batch.id for batch in first.data] == made[:2:-1] and first.has_more
        with pytest.raises(openai.NotFoundError):
            api.batches.retrieve("batch_none")


def test_sample_of_a_line_is_what_its_id_ends_in(tmp_path: Any) -> None:
    from teaching import recorded, write_rows

    path = write_rows(tmp_path / "r.jsonl", [recorded(COIN, f"Reason {i}.", "1", "1") for i in range(3)])
    with teacher(replay=(str(path),)) as api:
        lines = [line(n, custom_id=f"some-key-sample{n}") for n in range(3)]
        found = rows(api, ended(api, started(api, lines)).output_file_id)
    said = [found[f"some-key-sample{n}"]["response"]["body"]["choices"][0]["message"]["content"] for n in range(3)]
    assert said == ["Reason 0.", "Reason 1.", "Reason 2."]
