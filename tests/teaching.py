"""Helpers of the tests that ask a teacher: small recipes, and a real loopback server for any ASGI app."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pocketstill_pipeline.recipe import Recipe

KINDS = {
    "coin_flip": "yes_no",
    "last_letters": "text",
    "shuffled_objects": "choice",
    "arithmetic": "number",
    "tool_call": "json",
}


T = TypeVar("T")


def recipe_of(teacher: dict[str, Any] | None = None, skills: Any = None, **more: Any) -> Recipe:
    """A recipe of one skill (coin flip, 20 questions, 5 held out) unless told otherwise."""
    skills = skills or [{"name": "coin_flip", "kind": "yes_no", "questions": 20, "heldout": 5}]
    return Recipe.model_validate({"name": "test", "skills": skills, "teacher": teacher or {}} | more)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recorded(question: str, reasoning: str, completion: str, gold: str, **more: str) -> dict[str, str]:
    prompt = "Therefore, the answer (arabic numerals) is"
    return {
        "question": question, "reasoning": reasoning, "answer_prompt": prompt, "answer_completion": completion,
        "gold": gold,
    } | more  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI app on a free loopback port from a thread; gives the base URL with /v1."""
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    config = uvicorn.Config(
        app, lifespan="off", ws="none", access_log=False, log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def chat_app(answer: Any) -> Any:
    """An app whose POST /v1/chat/completions calls `answer(body, count) -> Response | str`, `count` from 1."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    state = {"count": 0}

    async def chat(request: Request) -> Response:
        state["count"] += 1
        said = answer(await request.json(), state["count"])
        if isinstance(said, Response):
            return said
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return JSONResponse({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    app.state.counted = state
    return app


class _Simulated(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            # A little more than was asked for, as a clock gives: a sum of waits may fall short of what it rounds to.
            self._now = max(self._now, self._scheduled[0].when()) + 1e-6  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def simulated(main: Coroutine[Any, Any, T]) -> T:
    """Run it in a time that passes at once whenever all wait, so that a busy machine makes nothing late."""
    loop = _Simulated()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
