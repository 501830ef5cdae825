"""Doctor: what this machine can run, and how to mend what it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.table import Table

# What each part needs: distribution name, import name, and the extra that brings it.
_NEEDS = (
    ("onnxruntime-genai", "onnxruntime_genai", "device", "pip install pocketstill"),
    ("tokenizers", "tokenizers", "device", "pip install pocketstill"),
    (
        "llama-cpp-python",
        "llama_cpp",
        "device, .gguf",
        "pip install 'pocketstill[gguf]' (builds from source)",
    ),
    ("torch", "torch", "workshop", "pip install 'pocketstill[workshop]'"),
    ("transformers", "transformers", "workshop", "pip install 'pocketstill[workshop]'"),
    ("openai", "openai", "workshop", "pip install 'pocketstill[workshop]'"),
    ("gguf", "gguf", "workshop", "pip install 'pocketstill[workshop]'"),
)


def doctor() -> dict[str, Any]:
    """Examine the machine; draws a table on stderr and returns the findings, JSON-ready."""
    packages = {name: _version(name, module) for name, module, _, _ in _NEEDS}
    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    free_gib = shutil.disk_usage(".").free / 2**30
    findings: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "compiler": compiler,
        "free_disk_gib": round(free_gib, 1),
        "packages": packages,
        "workshop": all(packages[name] for name, _, part, _ in _NEEDS if part == "workshop"),
        "device": all(packages[name] for name, _, part, _ in _NEEDS if part == "device"),
    }
    table = Table("what", "found", "to mend it", title="pocketstill doctor")
    for name, _, part, mend in _NEEDS:
        table.add_row(f"{name} ({part})", packages[name] or "missing", "" if packages[name] else mend)
    table.add_row("C++ compiler", compiler or "missing", "" if compiler else _mend_compiler())
    table.add_row("free disk", f"{free_gib:.1f} GiB", "" if free_gib > 6 else "the workshop wants about 6 GiB")
    Console(stderr=True).print(table)
    return findings


def _version(name: str, module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _mend_compiler() -> str:
    if sys.platform == "darwin":
        return "xcode-select --install"
    return "install g++ (needed to build llama-cpp-python and to compile training)"
