"""A server that answers every chat request with the same text after a fixed time, in a process of its own.

    python benchmarks/peers/fixed_server.py --latency-ms 50

Prints its base URL in a line of JSON and serves until its standard input closes. Raw sockets, no framework, so that
it is not what is measured: one core serves several thousand requests a second. `GET /stats` gives what happened since
the last look: chat requests answered, their rate a second, and the most that were in flight at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from functools import partial

TEXT = (
    "There were 15 trees at first. After the workers were done there were 21 trees. "
    "So they planted 21 - 15 = 6 trees. Therefore, the answer is 6."
)
COMPLETION = {
    "id": "chatcmpl-fixed",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "gpt-4o-mini",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 60, "completion_tokens": 42, "total_tokens": 102},
}
MODELS = {"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "nobody"}]}


def http(body: object, status: str = "200 OK") -> bytes:
    """A whole HTTP/1.1 response."""
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    return head.encode() + text


ANSWER, LIST, LOST = http(COMPLETION), http(MODELS), http({"error": {"message": "not served"}}, "404 Not Found")


class Counts:
    """What all connections together have seen since the last look."""

    def __init__(self) -> None:
        self.flying = self.most = 0
        self.times: list[float] = []

    def begin(self) -> None:
        self.flying += 1
        self.most = max(self.most, self.flying)

    def end(self) -> None:
        self.flying -= 1
        self.times.append(time.monotonic())

    def look(self) -> bytes:
        """The figures, as a response. `rate` is of the middle nine tenths of the answers: no start, no end."""
        times, self.times, most, self.most = self.times, [], self.most, self.flying
        cut = len(times) // 20
        inner = times[cut : len(times) - cut]
        rate = (len(inner) - 1) / (inner[-1] - inner[0]) if len(inner) > 1 else 0.0
        return http({"answered": len(times), "most_in_flight": most, "rate": rate})


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests must carry a Content-Length, as those of every client here do."""

    def __init__(self, latency_s: float, counts: Counts) -> None:
        self._latency_s, self._counts = latency_s, counts
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._received[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._received) < end + 4 + length:
                return
            self._received = self._received[end + 4 + length :]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        if head.startswith(b"post") and b"/chat/completions " in head:
            self._counts.begin()
            asyncio.get_running_loop().call_later(self._latency_s, self._send)
        elif head.startswith(b"get /stats "):
            self._transport.write(self._counts.look())
        else:
            self._transport.write(LIST if b"/models" in head.partition(b"\r\n")[0] else LOST)

    def _send(self) -> None:
        self._counts.end()
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def serve(latency_s: float) -> None:
    loop, counts = asyncio.get_running_loop(), Counts()
    server = await loop.create_server(partial(Connection, latency_s, counts), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"base_url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    asyncio.run(serve(parser.parse_args().latency_ms / 1000))
