"""The line to a teacher: the openai package's client, its address and its headers, over its fastest transport."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2
import openai

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask
from pocketstill_pipeline.recipe import Teacher

from .protocol import LOOPBACK

_CONNECT_TIMEOUT_S = 20.0
# Shorter than the 5 s after which uvicorn (so vLLM) and Node close idle connections: a request on one meets a reset.
_KEEP_ALIVE_S = 4.0
# Open files beside the connections: ledgers, samples, the pipes of local servers, and what Python itself has open.
_OTHER_FILES = 128


class Line:
    """An open line. `api` is the openai package's client; close that, and the line is closed.

    Chat completions go past `api`'s own method, to its HTTP client: what it does for each request anew (headers, the
    address, types that nobody reads) is done once here, and takes more than half of a request's time there.
    """

    def __init__(self, api: openai.AsyncOpenAI, http: Any, timeout: openai.Timeout) -> None:
        self.api = api
        self._http = http
        base = api.base_url
        self._url = base.copy_with(raw_path=base.raw_path + b"chat/completions")
        named = {**api.default_headers, **api.auth_headers}
        # Not what it tells of this machine and its Python.
        self._headers = {
            name: value
            for name, value in named.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")
        }
        self._extensions = {"timeout": timeout.as_dict()}

    async def post(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Send one request for a chat completion, once; gives the body of an answer with status 200 to 299.

        Raises:
            openai.APIStatusError: another status.
            httpx2.HTTPError, aiohttp.ClientError: there was no whole answer.
        """
        request = httpx2.Request(
            "POST", self._url, headers={**self._headers, **headers}, content=body, extensions=self._extensions
        )
        response = await self._http.send(request)
        if not response.is_success:
            raise _status_error(response)
        content: bytes = response.content
        return content


def line_of(teacher: Teacher, base_url: str) -> Line:
    """A line to the teacher at `base_url`. Nothing is retried on it.

    Raises:
        UserError: the URL is none or holds a password, the key or a proxy is none, or the system allows too few
            connections.
    """
    parts = _parts(base_url)
    if parts is None:
        # What stands before an @ is a secret.
        said = "" if "@" in base_url else f" {base_url!r}"
        raise UserError(
            f'teacher.base_url{said} is no URL; use "embedded", "replay", or one like http://127.0.0.1:8000/v1'
        )
    if parts.username or parts.password:
        # Not repeated here: what stands there is a secret, and would get into the ledger and the manifest.
        raise UserError(f"teacher.base_url holds a password; put the key into the variable {teacher.api_key_env}")
    key = os.environ.get(teacher.api_key_env, "").strip() or "none"
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the API key in the environment variable {teacher.api_key_env} has characters that no key has, "
            "a line break or a letter beyond ASCII; copy it anew"
        )
    _allow(teacher.concurrency + _OTHER_FILES)
    # A proxy of the environment has no business between this process and a server on the same machine.
    local = parts.hostname in LOOPBACK
    timeout = openai.Timeout(teacher.timeout_s, connect=min(teacher.timeout_s, _CONNECT_TIMEOUT_S))
    # One more for the list of models: the pace alone bounds the requests.
    limits = httpx2.Limits(max_connections=teacher.concurrency + 1, keepalive_expiry=_KEEP_ALIVE_S)
    try:
        http = openai.DefaultAioHttpClient(trust_env=not local, timeout=timeout, limits=limits)
    except (ValueError, httpx2.InvalidURL) as error:
        raise UserError(
            f"a proxy of the environment cannot be used ({error}); mend HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
        ) from None
    api = openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key,
        max_retries=0,
        timeout=timeout,
        http_client=http,
    )
    return Line(api, http, timeout)


@asynccontextmanager
async def connect(teacher: Teacher, base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The openai package's client of the teacher at `base_url`, for what is no chat completion.

    Raises:
        UserError: the URL is none or holds a password, or the key is none.
    """
    async with line_of(teacher, base_url).api as api:
        yield api


def body_of(base_url: str, ask: Ask) -> dict[str, Any]:
    """The body of a request for a chat completion."""
    # OpenAI's newer models refuse the name of the limit that everybody else's servers know.
    hosted = (urlsplit(base_url).hostname or "").endswith("openai.com")
    limit = "max_completion_tokens" if hosted else "max_tokens"
    body = {"model": ask.model, "messages": ask.messages, "temperature": ask.temperature, "seed": ask.seed}
    return body | {limit: ask.max_tokens} | dict(ask.extra)


def _parts(base_url: str) -> SplitResult | None:
    """The parts of a URL; None where it is none, or has a port or a host that cannot be."""
    try:
        httpx2.URL(base_url)
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            return None
        parts.hostname.encode("idna")
    except (ValueError, httpx2.InvalidURL):
        return None
    return parts


def _allow(files: int) -> None:
    """Have the system let this process open so many files: on macOS it begins with 256, elsewhere with 1024."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    except (ValueError, OSError):
        raise UserError(
            f"teacher.concurrency needs {files} open files, and the system allows {hard}; lower it, or raise the limit"
        ) from None


def _status_error(response: Any) -> openai.APIStatusError:
    text = " ".join(response.text.split())
    try:
        body = json.loads(response.content)
    except ValueError:
        body = text
    said = body.get("error", body) if isinstance(body, dict) else body
    message = said.get("message") if isinstance(said, dict) else None
    return openai.APIStatusError(str(message or text or response.reason_phrase), response=response, body=said)
