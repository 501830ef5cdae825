"""OpenAI's Batch API from the client's side: a batch is made once, waited for, and read line by line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import httpx2
import openai
from openai.types import Batch

from pocketstill.errors import UserError

from .failures import ERRORS, Failure, backoff_s, failure_of, reason

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
TOKEN_LIMIT = "token_limit_exceeded"
# So many times in a row must it say that it knows no such batch.
_MOST_UNKNOWN = 3
FIRST_POLL_S, _LAST_POLL_S, _POLL_GROWTH = 1.0, 60.0, 1.5
# So many looks in a row without an answer, a minute apart at last, mean that the teacher is gone.
_MOST_LOOKS = 15
_ENDED = ("completed", "failed", "expired", "cancelled")
_LEAST_TRANSFER_S = 600.0
# Under this name a batch's metadata say which of ours it is.
_TAG = "pocketstill"
_PAGE, _MOST_PAGES = 100, 3
_CHUNK = 256
T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """A line of a batch's output or error file: the body of an answer, or why there is none.

    `again`: the reason may pass, so the request is worth another batch.
    """

    custom_id: str
    body: dict[str, Any] | None
    error: str = ""
    again: bool = False


class BatchApi:
    """The batches of one account; `where` names the teacher in what is said about errors.

    `api` is to retry nothing by itself: that is done here, where it is known what must not be done twice.
    """

    def __init__(self, api: openai.AsyncOpenAI, where: str, retries: int, first_poll_s: float | None = None) -> None:
        self._api = api
        self._where = where
        self._retries = retries
        self._reached = False
        self.first_poll_s = FIRST_POLL_S if first_poll_s is None else first_poll_s
        timeout_s = api.timeout.read if isinstance(api.timeout, openai.Timeout) else None
        self._patient = self._api.with_options(timeout=max(timeout_s or 0.0, _LEAST_TRANSFER_S))

    async def make(self, content: bytes, tag: str) -> str:
        """Upload an input file and make a batch of it, once; its id.

        A batch whose making was not confirmed is looked for by its tag, since made twice it would be paid twice.

        Raises:
            UserError: the teacher refuses it, or has no Batch API.
        """
        upload = ("requests.jsonl", content, "application/jsonl")
        file = await self._tried(lambda: self._patient.files.create(file=upload, purpose="batch"))
        for attempt in range(self._retries + 1):
            try:
                batch = await self._api.batches.create(
                    input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={_TAG: tag}
                )
                return batch.id
            except (*ERRORS, ValueError) as error:
                failure = _failure(error)
                if not failure.again:
                    raise self._refused(error) from error
                await asyncio.sleep(backoff_s(attempt + 1, failure.wait_s))
                found = await self.find(tag)
                if found is not None:
                    return found
                if attempt == self._retries:
                    raise self._refused(error) from error
        raise AssertionError

    async def find(self, tag: str) -> str | None:
        """The id of the batch that was made with this tag, among the newest; None if there is none."""
        after: str | openai.Omit = openai.omit
        for _ in range(_MOST_PAGES):
            try:
                page = await self._tried(lambda after=after: self._page(after))  # type: ignore[misc]
            except UserError as error:
                # Some servers have no such list.
                if getattr(error.__cause__, "status_code", None) in (404, 405, 501):
                    return None
                raise
            for batch in page:
                if (batch.metadata or {}).get(_TAG) == tag:
                    return batch.id
            if len(page) < _PAGE:
                break
            after = page[-1].id
        return None

    async def _page(self, after: str | openai.Omit) -> list[Batch]:
        return (await self._api.batches.list(limit=_PAGE, after=after)).data

    async def ended(self, batch_id: str, seen: Callable[[Batch], None]) -> Batch | None:
        """Wait for the end of a batch, calling `seen` at every look at it; None when the teacher knows none such.

        Raises:
            UserError: the teacher cannot be reached for a long time, or refuses the key.
        """
        pause_s, unanswered, unknown = self.first_poll_s, 0, 0
        while True:
            try:
                batch = await self._api.batches.retrieve(batch_id)
            except (*ERRORS, ValueError) as error:
                # One alone may be a gateway's; who believes it pays for all of the batch again.
                unknown = unknown + 1 if isinstance(error, openai.NotFoundError) else 0
                if unknown == _MOST_UNKNOWN:
                    return None
                unanswered += 1
                if not unknown and (unanswered >= _MOST_LOOKS or not _failure(error).again):
                    raise self._refused(error, "its batch goes on there, and is found when you run again") from error
            else:
                unanswered = unknown = 0
                seen(batch)
                if batch.status in _ENDED:
                    return batch
            await asyncio.sleep(pause_s)
            pause_s = min(_LAST_POLL_S, pause_s * _POLL_GROWTH)

    async def answers(self, batch: Batch) -> AsyncIterator[list[Answered]]:
        """The lines of a batch's files, some at a time, each once; what is no JSON is left out.

        Files are read again as long as they have fewer lines than the batch says.

        Raises:
            UserError: a file cannot be read to its end.
        """
        read: set[str] = set()
        counts = batch.request_counts
        expected = counts.completed + counts.failed if counts is not None else 0
        for attempt in range(self._retries + 1):
            failure = None
            try:
                for file_id in (batch.output_file_id, batch.error_file_id):
                    async for chunk in self._lines(file_id, read):
                        yield chunk
            except (*ERRORS, httpx2.HTTPError) as error:
                failure = _failure(error)
                if attempt == self._retries or not failure.again:
                    raise self._refused(error, "its answers are kept there; run again") from error
            if failure is None and len(read) >= expected:
                return
            await asyncio.sleep(backoff_s(attempt + 1, failure.wait_s if failure is not None else None))

    async def _lines(self, file_id: str | None, read: set[str]) -> AsyncIterator[list[Answered]]:
        """The lines of a file that are not in `read` yet, which they enter as they are given out."""
        if file_id is None:
            return
        chunk: list[Answered] = []
        try:
            async with self._patient.files.with_streaming_response.content(file_id) as response:
                async for text in _lines_of(response.iter_bytes()):
                    line = read_line(text.decode(errors="replace"))
                    if line is None or line.custom_id in read:
                        continue
                    read.add(line.custom_id)
                    chunk.append(line)
                    if len(chunk) >= _CHUNK:
                        yield chunk
                        chunk = []
        except (*ERRORS, httpx2.HTTPError):
            # What came before the cut is not asked for again.
            if chunk:
                yield chunk
            raise
        if chunk:
            yield chunk

    async def _tried(self, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(self._retries + 1):
            try:
                result = await call()
            except (*ERRORS, ValueError) as error:
                failure = _failure(error)
                # Nobody was ever there: a mistake of the recipe's, that time does not mend.
                hopeless = not failure.again or (failure.unreached and not self._reached)
                if attempt == self._retries or hopeless:
                    raise self._refused(error) from error
                await asyncio.sleep(backoff_s(attempt + 1, failure.wait_s))
            else:
                self._reached = True
                return result
        raise AssertionError

    def _refused(self, error: Exception, kept: str = "what was answered is kept") -> UserError:
        said, key = _failure(error).said, self._api.api_key
        said = said.replace(key, "***") if len(key) > 6 else said
        status = getattr(error, "status_code", None)
        if status == 401:
            mend = "put a valid key into the variable that teacher.api_key_env names"
        elif status == 402 or getattr(error, "code", None) == "insufficient_quota":
            mend = "add to the account's quota"
        elif status in (404, 405, 501):
            mend = 'it has no Batch API there: say mode = "live" in [teacher]'
        else:
            mend = "mend that and run again"
        return UserError(f"{self._where}: {said}; {mend}; {kept}")


async def _lines_of(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a stream, at line feeds alone: JSON may hold U+2028 and others that end a line of text."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest


def input_file(requests: Iterable[tuple[str, dict[str, Any]]]) -> bytes:
    """The input file of a batch of requests, each with its custom_id."""
    lines = ({"custom_id": one, "method": "POST", "url": ENDPOINT, "body": body} for one, body in requests)
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def read_line(text: str) -> Answered | None:
    """A line of an output or error file; None if it is none."""
    try:
        raw = json.loads(text)
        custom_id, response, error = raw["custom_id"], raw.get("response"), raw.get("error")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(custom_id, str):
        return None
    if not isinstance(response, dict):
        error = error if isinstance(error, dict) else {}
        said = f"{error.get('code') or 'error'}: {error.get('message') or 'no reason given'}"
        return Answered(custom_id, None, said, again=True)
    status, body = response.get("status_code"), response.get("body")
    if status == 200 and isinstance(body, dict):
        return Answered(custom_id, body)
    told = body.get("error") if isinstance(body, dict) else None
    message = told.get("message") if isinstance(told, dict) else None
    again = not isinstance(status, int) or _passes(status)
    return Answered(
        custom_id, None, f"HTTP {status}: {' '.join(str(message or 'no reason given').split())[:300]}", again
    )


def _passes(status: int) -> bool:
    return status in (200, 408, 409, 429) or status >= 500


def _failure(error: Exception) -> Failure:
    """What an error means; one that is not HTTP's is an answer that cannot be read."""
    if isinstance(error, ERRORS):
        failure = failure_of(error)
        return replace(failure, again=False) if getattr(error, "code", None) == "insufficient_quota" else failure
    if isinstance(error, httpx2.HTTPError):
        return Failure(reason(error))
    return Failure(f"its answer cannot be read ({' '.join(str(error).split())[:200]})")
