"""Helpers of the tests that run the command: a tiny recipe, a teacher that notes what it is asked, and processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("pocketstill"))
SECRET = "sk-secret-5c1e0f7a93b24d68"
VARIANTS = ("onnx-fp32", "onnx-int4", "gguf-f16")
SHIPPED = ("onnx-int4", "gguf-f16")

# Two steps a question and one, a student of 70,000 parameters, some twenty optimizer steps, answers cut short.
RECIPE = """
name = "tiny"
seed = 3
[teacher]
base_url = "{base_url}"
samples = 2
concurrency = 1
retries = 0
[[skills]]
name = "coin_flip"
kind = "yes_no"
questions = 24
heldout = 4
[[skills]]
name = "last_letters"
kind = "text"
questions = 12
heldout = 4
[[skills]]
name = "tool_call"
kind = "json"
questions = 12
heldout = 4
[curate]
max_per_question = 8
[student]
context_length = 192
[student.new]
hidden_size = 64
layers = 1
heads = 2
kv_heads = 2
intermediate_size = 128
vocabulary = 700
[train]
tokens = 8000
batch_tokens = 512
compile = false
[verify]
variants = ["onnx-fp32", "onnx-int4", "gguf-f16"]
tolerance = 1.0
max_cost = 1.0
cores = 1
max_new_tokens = 4
"""

# The command, killed by itself when it comes to the nth event of a kind whose arguments name something.
_KILLED = """
import os, signal, sys
event, part, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = ["pocketstill", *sys.argv[4:]]
def watch(name, arguments):
    global left
    if name == event and any(part in str(argument) for argument in arguments):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from pocketstill.cli import main
main()
"""

# The command, unable to make any file larger than so many bytes.
_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["pocketstill", *sys.argv[2:]]
from pocketstill.cli import main
main()
"""


def write_recipe(path: Path, base_url: str = "embedded", *changes: tuple[str, str]) -> Path:
    """The tiny recipe at `path`, with parts of its text replaced."""
    text = RECIPE.format(base_url=base_url)
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """One thread, a key that must be found nowhere, and no way to a hub."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENAI_API_KEY": SECRET, "HF_HUB_OFFLINE": "1"} | more


def pocketstill(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """The installed command, run to its end."""
    return _ended([COMMAND], arguments, **more)


def killed_at(event: str, part: str, nth: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, killed by signal 9 just before the nth `event` (see sys.addaudithook) that names `part`."""
    return _ended([sys.executable, "-c", _KILLED, event, part, str(nth)], arguments)


def limited_to(most_bytes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, to which the disk is full when a file reaches so many bytes."""
    return _ended([sys.executable, "-c", _LIMITED, str(most_bytes)], arguments)


def _ended(head: list[str], arguments: tuple[str | Path, ...], **more: Any) -> subprocess.CompletedProcess[str]:
    more = {"env": environment(), "timeout": 300, "stdin": subprocess.DEVNULL} | more
    return subprocess.run([*head, *map(str, arguments)], capture_output=True, text=True, check=False, **more)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object that a command ended with."""
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def complaint_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command which met a user's mistake ended with."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("pocketstill: ")]
    assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0], done.stderr
    assert done.stdout == ""
    return lines[0]


@dataclass
class NotedTeacher:
    """An embedded teacher on loopback that notes every chat request, and may kill who sends the nth."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    on_request: Callable[[int], bool] = lambda _: False

    @contextmanager
    def killing(self, nth: int, process: Callable[[], subprocess.Popen[str]]) -> Iterator[subprocess.Popen[str]]:
        """Kill a process, that `process` starts, when it has sent its nth request, which is not answered."""
        first, victims = len(self.asked), []

        def kill(count: int) -> bool:
            if count == first + nth:
                victims[0].send_signal(signal.SIGKILL)
            return count == first + nth

        self.on_request = kill
        victims.append(process())
        try:
            yield victims[0]
        finally:
            self.on_request = lambda _: False
            victims[0].kill()
            victims[0].wait()

    def noting(self, app: Any) -> Any:
        """The ASGI app `app`, with every chat request noted before it is answered."""

        async def outer(scope: Any, receive: Any, send: Any) -> None:
            if not scope["path"].endswith("/chat/completions"):
                return await app(scope, receive, send)
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            headers = dict(scope["headers"])
            self.keys.add(headers.get(b"authorization", b"").decode())
            self.asked.append(hashlib.sha256(body + headers.get(b"x-sample-index", b"")).hexdigest())
            if self.on_request(len(self.asked)):
                await send({"type": "http.response.start", "status": 503, "headers": []})
                return await send({"type": "http.response.body"})

            async def again() -> Any:
                return {"type": "http.request", "body": body, "more_body": False}

            return await app(scope, again, send)

        return outer


@dataclass(frozen=True)
class Finished:
    """A whole run: `root` is its folder in `runs`, `asked` what it asked the teacher, `home` its HF_HOME."""

    recipe: Path
    runs: Path
    home: Path
    done: subprocess.CompletedProcess[str]
    asked: tuple[str, ...]

    @property
    def root(self) -> Path:
        return self.runs / "tiny"

    @property
    def bundle(self) -> Path:
        return self.root / "device"


def files_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below with inode, size and time: what was written again differs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            state = path.stat()
            found[path.relative_to(folder).as_posix()] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def stages_rewritten(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Which stages' manifests differ between two results of `files_of` a run."""
    names = {name for name in before.keys() | after.keys() if name.endswith("manifest.json")}
    return {name.rpartition("/")[0] or "bundle" for name in names if before.get(name) != after.get(name)}
