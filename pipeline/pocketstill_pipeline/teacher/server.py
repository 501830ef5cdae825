"""A local teacher behind the OpenAI protocol: a real HTTP server on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import uvicorn

from pocketstill.errors import UserError

from . import TeacherConfig
from .app import make_app
from .protocol import LOOPBACK

__all__ = ["TeacherConfig", "make_app", "running_teacher", "serve"]

_START_TIMEOUT_S = 60.0


def _listen(host: str, port: int) -> socket.socket:
    if host not in LOOPBACK:
        raise UserError(f"the local teacher serves loopback only, not {host}; leave the host away, or use 127.0.0.1")
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    # With the protocol left at 0, asyncio does not turn Nagle's algorithm off, and each answer waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot listen on {host} port {port}: {error}; choose another --port") from None
    return listener


def _server(config: TeacherConfig) -> uvicorn.Server:
    settings = uvicorn.Config(
        make_app(config), lifespan="off", ws="none", access_log=False, log_level="warning",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    return uvicorn.Server(settings)


def serve(config: TeacherConfig, host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve until interrupted; prints one JSON line with the base URL. Port 0 takes a free one.

    Raises:
        UserError: the port is taken, the host is not loopback, or a replay file is broken.
    """
    server = _server(config)
    with contextlib.closing(_listen(host, port)) as listener, contextlib.suppress(KeyboardInterrupt):
        listener.listen(128)
        print(json.dumps({"base_url": _base_url(listener), "model": config.model}), flush=True)
        server.run(sockets=[listener])


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


@contextlib.contextmanager
def running_teacher(config: TeacherConfig) -> Iterator[str]:
    """A local teacher in a child process for the length of a `with` block; gives its base URL.

    The child ends when the block does, and also when this process dies by whatever means: it watches a pipe.

    Raises:
        UserError: a replay file is missing or broken, or the child does not start.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "pocketstill_pipeline.teacher.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        # Ctrl-C reaches this process alone, so that requests in flight are not refused on the way out.
        start_new_session=True,
    )
    assert child.stdin is not None and child.stdout is not None
    overdue = threading.Timer(_START_TIMEOUT_S, child.kill)
    try:
        overdue.start()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(asdict(config)) + "\n")
            child.stdin.flush()
        line = child.stdout.readline()
        overdue.cancel()
        said = json.loads(line) if line else {"error": "the local teacher did not start; see the lines above"}
        if "error" in said:
            raise UserError(said["error"])
        yield said["base_url"]
    finally:
        overdue.cancel()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def _serve_parent() -> None:
    raw: dict[str, Any] = json.loads(sys.stdin.readline())
    config = TeacherConfig(**raw)
    try:
        server = _server(config)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(2)

    def stop_with_parent() -> None:
        # Not through sys.stdin: its lock, held by this thread, would trouble the interpreter's shutdown.
        while os.read(0, 1024):
            pass
        server.should_exit = True

    with contextlib.closing(_listen("127.0.0.1", 0)) as listener:
        listener.listen(128)
        print(json.dumps({"base_url": _base_url(listener)}), flush=True)
        threading.Thread(target=stop_with_parent, daemon=True).start()
        server.run(sockets=[listener])


if __name__ == "__main__":
    _serve_parent()
