"""The local teacher's application: OpenAI's chat, files and batches, with faults and limits on demand."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import FAULT_KINDS, TeacherConfig
from .answerers import Answered, answerer_of, halved
from .answers import completion_json, stream_events
from .batches import Batches
from .bodies import bounded_body
from .faults import Limits, Served, digest_of, too_many
from .protocol import SAMPLE_HEADER, ChatRequest, ProtocolError, parse_chat, prompt_tokens

_MOST_BODY_BYTES = 1 << 20
# What a request without a limit is taken to be answered, where its tokens are limited.
_USUAL_ANSWER = 256
_UNFINISHED = "ASGI callable returned without completing response."
Handler = Callable[[Request], Awaitable[Response]]


def make_app(config: TeacherConfig) -> Starlette:
    """The ASGI application. `GET /stats` counts what was answered since it started, and which faults were served.

    Raises:
        UserError: a replay file or a bundle is missing or broken, or a kind of fault is unknown.
    """
    service = _Service(config)
    routes = [
        Route("/v1/models", service.models),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        *Batches(config, service.served, service.line).routes(service.spoiling),
        Route("/stats", service.stats),
    ]
    if config.faults:
        # A connection that is cut on demand is no error of the server's.
        logging.getLogger("uvicorn.error").addFilter(_expected)
    return Starlette(routes=routes, exception_handlers={ProtocolError: _refused, HTTPException: _no_route})


class _Service:
    def __init__(self, config: TeacherConfig) -> None:
        self.config = config
        self.served = Served(config)
        self.limits = Limits(config, self.served)
        self.answer = answerer_of(config)
        self.started = int(time.time())

    async def models(self, _: Request) -> Response:
        model = {"id": self.config.model, "object": "model", "created": self.started, "owned_by": "pocketstill"}
        return JSONResponse({"object": "list", "data": [model]})

    async def stats(self, _: Request) -> Response:
        return JSONResponse(self.served.stats())

    async def chat(self, http: Request) -> Response:
        sample = http.headers.get(SAMPLE_HEADER)
        body = await bounded_body(http, _MOST_BODY_BYTES)
        request = parse_chat(body, sample)
        self._check(request)
        digest = digest_of(body, sample)
        tokens = prompt_tokens(request) + (request.max_tokens or _USUAL_ANSWER) if self.limits.any else 0
        with self.limits.admitted(tokens):
            fault = self.served.draw(digest)
            if await self._struck(http, fault):
                return Response(status_code=503)
            if self.config.latency_ms:
                await asyncio.sleep(self.config.latency_ms / 1000)
            answered = await self.answer(request)
        if fault == "truncated":
            answered = replace(answered, choices=[halved(choice) for choice in answered.choices])
        if fault not in ("cut", "malformed"):
            self.served.answered(digest)
        return _spoiled(self._said(request, answered, body), fault)

    def _check(self, request: ChatRequest) -> None:
        if request.model != self.config.model:
            said = f"The model {request.model!r} does not exist here; {self.config.model!r} is served."
            raise ProtocolError(404, said, code="model_not_found", param="model")

    def _said(self, request: ChatRequest, answered: Answered, body: bytes) -> Response:
        identity = "chatcmpl-" + hashlib.blake2b(body, digest_size=12).hexdigest()
        given = (request, answered.choices, answered.prompt_tokens, identity, int(time.time()))
        headers = self.limits.headers()
        if request.stream:
            return _Events(list(stream_events(*given)), headers)
        return JSONResponse(completion_json(*given), headers=headers)

    async def line(self, request: ChatRequest, digest: bytes) -> tuple[int, dict[str, Any]]:
        """A line of a batch: the status and the body of its response."""
        fault = self.served.draw(digest, ("rate_limit", "server_error", "truncated"))
        identity = "chatcmpl-" + digest.hex()
        try:
            self._check(request)
            self._refuse(fault)
            answered = await self.answer(request)
        except ProtocolError as error:
            return error.status, error.body
        choices = [halved(choice) for choice in answered.choices] if fault == "truncated" else answered.choices
        self.served.answered(digest)
        return 200, completion_json(request, choices, answered.prompt_tokens, identity, int(time.time()))

    def spoiling(self, handler: Handler, possible: Sequence[str] = FAULT_KINDS[:-1]) -> Handler:
        """A handler of other requests, with the same faults."""
        if not self.config.faults:
            return handler

        async def handle(http: Request) -> Response:
            fault = self.served.draw(digest_of(f"{http.method} {http.url.path}".encode(), None), possible)
            if fault == "hang":
                # Kept by the request, for what comes behind it is whether the client has left.
                await http.body()
            if await self._struck(http, fault):
                return Response(status_code=503)
            return _spoiled(await handler(http), fault)

        return handle

    def _refuse(self, fault: str | None) -> None:
        if fault == "rate_limit":
            raise too_many("requests", "Rate limit reached.", self.config.retry_after_s)
        if fault == "server_error":
            raise ProtocolError(500, "The server had an error while processing your request.", kind="server_error")

    async def _struck(self, http: Request, fault: str | None) -> bool:
        """Refuse, or hang: then whether the client has gone meanwhile."""
        self._refuse(fault)
        if fault != "hang":
            return False
        try:
            await asyncio.wait_for(_left(http), self.config.hang_s)
        except asyncio.TimeoutError:
            return False
        return True


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """Server-sent events that are known already."""

    def __init__(self, events: list[bytes], headers: dict[str, str]) -> None:
        super().__init__(_each(events), headers=headers, media_type="text/event-stream")
        self.events = events


async def _each(events: Sequence[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event


class _Cut(Response):
    """The head of a response and half of its body; the server then closes the connection."""

    def __init__(self, whole: Response, half: bytes) -> None:
        super().__init__(half, whole.status_code)
        self.raw_headers = whole.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})


def _spoiled(response: Response, fault: str | None) -> Response:
    if fault not in ("cut", "malformed"):
        return response
    events = isinstance(response, _Events)
    if isinstance(response, _Events):
        half = b"".join(response.events[: (len(response.events) + 1) // 2])
        broken = half + b'data: {"choices": [{"index"\n\n' + b"data: [DONE]\n\n"
    else:
        half = broken = bytes(response.body)[: len(response.body) // 2]
    if fault == "cut":
        return _Cut(response, half)
    return Response(broken, response.status_code, media_type="text/event-stream" if events else "application/json")


def _expected(record: logging.LogRecord) -> bool:
    return record.msg != _UNFINISHED


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProtocolError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _no_route(http: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = f"{http.method} {http.url.path} is not served; POST /v1/chat/completions and GET /v1/models are."
    return JSONResponse(ProtocolError(status, said, code="unknown_url").body, status_code=status)
