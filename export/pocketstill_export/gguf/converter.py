"""The escape for architectures that are not written here: llama.cpp's own converter, when the user names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.write import GgufPrecision


def convert_by_llama_cpp(
    script: Path, checkpoint: Checkpoint, path: Path, *, precision: GgufPrecision, name: str
) -> None:
    """Writes `path` by the script convert_hf_to_gguf.py of a copy of llama.cpp's source.

    It runs in a process of its own with this Python, the `gguf` package that lies beside it, and no network.

    Raises:
        ExportError: there is no such script, or it failed: with the last thing it said; `path` is not left behind.
    """
    script = Path(script)
    if not script.is_file():
        raise ExportError(f"{script} is not there; give the convert_hf_to_gguf.py of llama.cpp's source")
    script = script.resolve()
    command = [sys.executable, str(script), str(checkpoint.folder.resolve()), "--outfile", str(path.resolve())]
    command += ["--outtype", precision, "--model-name", name]
    paths = [str(script.parent / "gguf-py"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    path.unlink(missing_ok=True)
    done = False
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
        )
        if run.returncode == 0 and not path.is_file():
            raise ExportError(f"{script} wrote no {path.name}; it may not be llama.cpp's converter")
        if run.returncode != 0:
            lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
            words = lines[-1] if lines else f"exit status {run.returncode}"
            raise ExportError(f"{script} could not convert {checkpoint.folder}: {words}; leave the gguf variants out")
        done = True
    finally:
        if not done:
            path.unlink(missing_ok=True)
