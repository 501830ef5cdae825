"""OpenAI's files and batches as a server has them, in memory: many requests in one file, answered later."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import TeacherConfig
from .bodies import bounded_body, form_fields
from .faults import Served, digest_of
from .protocol import ChatRequest, ProtocolError, prompt_tokens, read_chat

ENDPOINT = "/v1/chat/completions"
_WINDOW = "24h"
# OpenAI's limits: requests and bytes of an input file, characters of a custom_id, errors that are listed.
_MOST_LINES, _MOST_FILE_BYTES = 50_000, 200 << 20
_MOST_ID, _MOST_ERRORS = 64, 20
_SAMPLE = re.compile(r"-sample(\d{1,9})$")
# How late a line may come that was due within the window: what expires is by rule, not by how busy the machine is.
_SLACK_S = 10.0
_ENDED = ("completed", "failed", "expired", "cancelled")
Line = Callable[[ChatRequest, bytes], Awaitable[tuple[int, dict[str, Any]]]]
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class _File:
    id: str
    name: str
    purpose: str
    content: bytes
    created: int

    @property
    def json(self) -> dict[str, Any]:
        return {
            "id": self.id, "object": "file", "bytes": len(self.content), "created_at": self.created,
            "filename": self.name, "purpose": self.purpose, "status": "processed", "expires_at": None,
        }  # fmt: skip


@dataclass
class _Batch:
    id: str
    input_file_id: str
    metadata: dict[str, str] | None
    expires_at: int
    created: int = field(default_factory=lambda: int(time.time()))
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    files: dict[str, str] = field(default_factory=dict)

    def enter(self, status: str) -> None:
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    @property
    def json(self) -> dict[str, Any]:
        stages = ("in_progress", "finalizing", *_ENDED, "cancelling")
        return {
            "id": self.id, "object": "batch", "endpoint": ENDPOINT, "input_file_id": self.input_file_id,
            "completion_window": _WINDOW, "status": self.status, "metadata": self.metadata,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "output_file_id": self.files.get("output"), "error_file_id": self.files.get("error"),
            "created_at": self.created, "expires_at": self.expires_at,
            **{f"{stage}_at": self.times.get(f"{stage}_at") for stage in stages},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
        }  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """A line of an input file; `request` is what is wrong with it where it cannot be asked."""

    custom_id: str
    request: ChatRequest | ProtocolError
    digest: bytes


class Batches:
    """The files and batches of one server.

    A line's sample, which a live request says in a header, is what its custom_id may end in: `-sample3`.
    """

    def __init__(self, config: TeacherConfig, served: Served, answer: Line) -> None:
        self._config, self._served, self._answer = config, served, answer
        self._files: dict[str, _File] = {}
        self._batches: dict[str, _Batch] = {}
        self._number = itertools.count(1)
        self._running: set[asyncio.Task[None]] = set()

    def routes(self, spoiling: Callable[[Handler], Handler]) -> list[Route]:
        """What is served, each handler passed through `spoiling`."""
        served = (
            ("/v1/files", self._upload, "POST"),
            ("/v1/files", self._list_files, "GET"),
            ("/v1/files/{id}", self._file, "GET"),
            ("/v1/files/{id}", self._delete, "DELETE"),
            ("/v1/files/{id}/content", self._content, "GET"),
            ("/v1/batches", self._create, "POST"),
            ("/v1/batches", self._list_batches, "GET"),
            ("/v1/batches/{id}", self._batch, "GET"),
            ("/v1/batches/{id}/cancel", self._cancel, "POST"),
        )
        return [Route(path, spoiling(handler), methods=[method]) for path, handler, method in served]

    async def _upload(self, http: Request) -> Response:
        body = await bounded_body(http, _MOST_FILE_BYTES + (1 << 20))
        fields = form_fields(body, http.headers.get("content-type", ""))
        purpose = fields.get("purpose", ("", b""))[1].decode("utf-8", "replace")
        if purpose != "batch":
            raise ProtocolError(400, f"The purpose {purpose!r} is not served; 'batch' is.", param="purpose")
        if "file" not in fields:
            raise ProtocolError(400, "'file' is missing.", param="file")
        name, content = fields["file"]
        if not name.endswith(".jsonl"):
            raise ProtocolError(400, f"The file {name!r} is no .jsonl file.", param="file")
        return JSONResponse(self._keep(name, "batch", content).json)

    def _keep(self, name: str, purpose: str, content: bytes) -> _File:
        file = _File(f"file-{next(self._number):08d}", name, purpose, content, int(time.time()))
        self._files[file.id] = file
        return file

    def _found(self, http: Request) -> _File:
        identity = http.path_params["id"]
        if identity not in self._files:
            raise ProtocolError(404, f"No such File object: {identity}", param="id")
        return self._files[identity]

    async def _list_files(self, _: Request) -> Response:
        data = [file.json for file in reversed(self._files.values())]
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    async def _file(self, http: Request) -> Response:
        return JSONResponse(self._found(http).json)

    async def _delete(self, http: Request) -> Response:
        file = self._found(http)
        del self._files[file.id]
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    async def _content(self, http: Request) -> Response:
        return Response(self._found(http).content, media_type="application/octet-stream")

    async def _create(self, http: Request) -> Response:
        try:
            raw = json.loads(await bounded_body(http, 1 << 20))
        except (ValueError, RecursionError):
            raise ProtocolError(400, "The request body is not valid JSON.") from None
        raw = raw if isinstance(raw, dict) else {}
        for name, right in (("completion_window", _WINDOW), ("endpoint", ENDPOINT)):
            if raw.get(name) != right:
                raise ProtocolError(400, f"'{name}' must be {right!r}.", param=name)
        file = self._files.get(str(raw.get("input_file_id")))
        if file is None or file.purpose != "batch":
            raise ProtocolError(400, "'input_file_id' names no file for batches.", param="input_file_id")
        batch = _Batch(
            f"batch_{next(self._number):08d}", file.id, raw.get("metadata"),
            int(time.time() + self._config.batch_window_s),
        )  # fmt: skip
        self._batches[batch.id] = batch
        self._served.batches["created"] += 1
        task = asyncio.create_task(self._run(batch, file.content))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return JSONResponse(batch.json)

    def _found_batch(self, http: Request) -> _Batch:
        identity = http.path_params["id"]
        if identity not in self._batches:
            raise ProtocolError(404, f"No batch found with id '{identity}'.", param="id")
        return self._batches[identity]

    async def _batch(self, http: Request) -> Response:
        return JSONResponse(self._found_batch(http).json)

    async def _list_batches(self, http: Request) -> Response:
        limit, after = http.query_params.get("limit", "20"), http.query_params.get("after")
        if not limit.isdecimal() or not 1 <= int(limit) <= 100:
            raise ProtocolError(400, "'limit' must lie between 1 and 100.", param="limit")
        ids = list(reversed(self._batches))
        ids = ids[ids.index(after) + 1 :] if after in ids else ids
        data = [self._batches[one].json for one in ids[: int(limit)]]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return JSONResponse({"object": "list", "data": data, "has_more": len(ids) > int(limit)} | ends)

    async def _cancel(self, http: Request) -> Response:
        batch = self._found_batch(http)
        if batch.status in _ENDED:
            raise ProtocolError(409, f"The batch has ended: {batch.status}.", param="id")
        batch.enter("cancelling")
        return JSONResponse(batch.json)

    async def _run(self, batch: _Batch, content: bytes) -> None:
        lines = await self._validated(batch, content)
        if batch.errors:
            batch.enter("failed")
            self._served.batches["failed"] += 1
            return
        if batch.status == "validating":
            batch.enter("in_progress")
        output: list[bytes] = []
        errors: list[bytes] = []
        ended = await self._answer_all(batch, lines, output, errors)
        if ended == "completed":
            batch.enter("finalizing")
        for kind, found in (("output", output), ("error", errors)):
            if found:
                batch.files[kind] = self._keep(f"{batch.id}_{kind}.jsonl", "batch_output", b"".join(found)).id
        batch.enter(ended)
        self._served.batches[ended] += 1

    async def _answer_all(self, batch: _Batch, lines: list[_Asked], output: list[bytes], errors: list[bytes]) -> str:
        """Answer every line that there is time for; how the batch ends."""
        started, window_s = time.monotonic(), self._config.batch_window_s
        for number, line in enumerate(lines):
            due_s = self._config.batch_latency_s * (number + 1) / len(lines)
            await asyncio.sleep(max(0.0, started + min(due_s, window_s) - time.monotonic()))
            if batch.status == "cancelling":
                return "cancelled"
            if due_s > window_s or time.monotonic() > started + window_s + _SLACK_S:
                said = "This request could not be executed before the completion window expired."
                errors += [_line(late, None, {"code": "batch_expired", "message": said}) for late in lines[number:]]
                batch.failed += len(lines) - number
                return "expired"
            status, body = await self._one(line)
            good = status == 200
            (output if good else errors).append(_line(line, {"status_code": status, "body": body}, None))
            batch.completed += good
            batch.failed += not good
            self._served.batches["lines"] += good
        return "completed"

    async def _one(self, line: _Asked) -> tuple[int, dict[str, Any]]:
        if isinstance(line.request, ProtocolError):
            return line.request.status, line.request.body
        return await self._answer(line.request, line.digest)

    async def _validated(self, batch: _Batch, content: bytes) -> list[_Asked]:
        """The lines of an input file; what is wrong with the file goes to the batch's errors."""
        lines: list[_Asked] = []
        seen: set[str] = set()
        for number, text in enumerate(content.split(b"\n"), 1):
            if number % 256 == 0:
                await asyncio.sleep(0)
            if not text.strip():
                continue
            read = _read(text)
            if isinstance(read, _Asked) and read.custom_id in seen:
                read = ("duplicate_custom_id", f"The custom_id {read.custom_id!r} stands twice.", "custom_id")
            if isinstance(read, _Asked):
                seen.add(read.custom_id)
                lines.append(read)
                batch.tokens += prompt_tokens(read.request) if isinstance(read.request, ChatRequest) else 0
                self._check_model(batch, read.request, number)
            else:
                code, said, param = read
                batch.errors.append({"code": code, "message": said, "param": param, "line": number})
            if len(batch.errors) >= _MOST_ERRORS:
                break
        batch.total = len(lines)
        self._check_size(batch)
        return lines

    def _check_model(self, batch: _Batch, request: ChatRequest | ProtocolError, number: int) -> None:
        if isinstance(request, ChatRequest) and request.model != self._config.model:
            said = f"The model {request.model!r} does not exist here; {self._config.model!r} is served."
            batch.errors.append({"code": "model_not_found", "message": said, "param": "body.model", "line": number})

    def _check_size(self, batch: _Batch) -> None:
        def wrong(code: str, said: str) -> None:
            batch.errors.append({"code": code, "message": said, "param": None, "line": None})

        if batch.errors:
            return
        if not batch.total:
            wrong("empty_file", "The input file has no requests.")
        if batch.total > _MOST_LINES:
            wrong("invalid_request", f"The input file has more than {_MOST_LINES} requests.")
        most = self._config.batch_tokens
        waiting = sum(one.tokens for one in self._batches.values() if one.status not in _ENDED)
        if most is not None and waiting > most:
            said = f"Enqueued token limit reached for {self._config.model}: limit {most}, with this batch {waiting}."
            wrong("token_limit_exceeded", f"{said} Please try again once some batches have been completed.")


def _read(text: bytes) -> _Asked | tuple[str, str, str | None]:
    """A line of an input file, or what is wrong with it as code, message and parameter."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return "invalid_json_line", "This line is not valid JSON.", None
    raw = raw if isinstance(raw, dict) else {}
    identity = raw.get("custom_id")
    if not isinstance(identity, str) or not 1 <= len(identity) <= _MOST_ID:
        return "missing_required_parameter", f"'custom_id' must be a text of up to {_MOST_ID}.", "custom_id"
    for name, right in (("method", "POST"), ("url", ENDPOINT)):
        if raw.get(name) != right:
            return f"invalid_{name}", f"'{name}' must be {right!r}.", name
    if not isinstance(raw.get("body"), dict):
        return "missing_required_parameter", "'body' must be an object.", "body"
    told = _SAMPLE.search(identity)
    sample = told[1] if told else "0"
    request: ChatRequest | ProtocolError
    try:
        request = read_chat(raw["body"], int(sample))
        if request.stream:
            raise ProtocolError(400, "A batch cannot stream.", param="stream")
    except ProtocolError as error:
        request = error
    body = json.dumps(raw["body"], sort_keys=True).encode()
    return _Asked(identity, request, digest_of(body, sample))


def _line(line: _Asked, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    identity = line.digest.hex()
    if response is not None:
        response = {"request_id": f"req_{identity}"} | response
    said = {"id": f"batch_req_{identity}", "custom_id": line.custom_id, "response": response, "error": error}
    return json.dumps(said, ensure_ascii=False).encode() + b"\n"
