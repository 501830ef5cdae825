"""Child processes of the export: the builder of onnxruntime-genai, and GPT-QModel."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError


class Builder:
    """The builder's process. It takes seconds to import what it needs; `started_builder` begins that early."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def build(self, checkpoint: Checkpoint, builds: Mapping[str, Path], context_length: int) -> None:
        """Builds the model of each precision (fp32, fp16) in `builds` into its folder, once for a process.

        Raises:
            ExportError: the builder failed; its last line is in the message.
        """
        jobs = [
            {
                "checkpoint": str(checkpoint.folder.resolve()),
                "out": str(build.resolve()),
                "precision": precision,
                "context_length": context_length,
            }
            for precision, build in builds.items()
        ]
        said, _ = self._process.communicate(json.dumps(jobs))
        _check_ended(self._process.returncode, said, "onnxruntime-genai's builder", checkpoint.folder)


@contextlib.contextmanager
def started_builder() -> Iterator[Builder]:
    """The builder's process, ended with the block whether it was used or not."""
    with (
        tempfile.TemporaryDirectory(prefix="pocketstill-") as folder,
        _start("pocketstill_export.onnx._builder_child", cwd=folder) as process,
    ):
        try:
            yield Builder(process)
        finally:
            process.kill()


def run_child(module: str, argument: str, folder: Path, name: str, checkpoint: Path) -> None:
    """Runs `python -m module argument` in `folder`, offline.

    Raises:
        ExportError: it failed; `name` and its last line are in the message.
    """
    with _start(module, argument, cwd=folder) as process:
        said, _ = process.communicate()
    _check_ended(process.returncode, said, name, checkpoint)


def _start(module: str, *arguments: str, cwd: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        env=environment,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _check_ended(status: int, said: str, name: str, checkpoint: Path) -> None:
    if status == 0:
        return
    words = [line.strip() for line in said.splitlines() if line.strip()]
    reason = words[-1] if words else f"exit status {status}"
    raise ExportError(f"{name} failed on {checkpoint} ({reason}); mend that, or leave the onnx variants out")
