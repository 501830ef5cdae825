"""`manifest.json`: what a stage leaves last, so that its presence means the stage is complete."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError
from pocketstill.files import read_json, sha256_file, write_json

MANIFEST = "manifest.json"

# The packages whose version can change what a stage writes.
_VERSIONED = (
    "pocketstill",
    "datasets",
    "gguf",
    "llama-cpp-python",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Manifest:
    """The record of one stage.

    `inputs` maps a name to the SHA-256 of what was read; `outputs` maps a path relative to the stage's
    folder to the SHA-256 of what was written; `seconds` is wall time.
    """

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    versions: dict[str, str]
    seed: int | None
    counts: dict[str, Any]
    seconds: float


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that shape a stage's output."""
    return dict(_versions())


def _normalised(value: Any) -> Any:
    """As JSON would give it back: tuples as lists, keys as strings, paths as text."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def write_manifest(
    directory: str | Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    outputs: Sequence[str | Path],
    seed: int | None = None,
    counts: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> Manifest:
    """Hashes `outputs` and writes `directory/manifest.json`. Call it last: it declares the stage complete.

    Args:
        directory: the stage's own folder.
        stage: the verb, such as "collect".
        config: all that the stage was told, as JSON values.
        inputs: name to SHA-256 of everything that was read.
        outputs: files written, absolute or relative to `directory`; a folder stands for all files in it.
        seed: the seed that was used, when there was one.
        counts: figures worth keeping (rows, tokens, rejects).
        seconds: wall time that the stage took.

    Raises:
        UserError: when an output is missing, or lies outside `directory`.
    """
    directory = Path(directory)
    hashes: dict[str, str] = {}
    for output in outputs:
        path = directory / output
        if not path.exists() and Path(output).exists():
            path = Path(output)
        try:
            path.absolute().relative_to(directory.absolute())
        except ValueError:
            raise UserError(f"{stage}: output {output} lies outside of {directory}; write it inside") from None
        found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in found:
            if not file.is_file():
                raise UserError(f"{stage}: output {file} was not written; run the stage again")
            relative = file.absolute().relative_to(directory.absolute()).as_posix()
            if relative != MANIFEST:
                hashes[relative] = sha256_file(file)
    manifest = Manifest(
        stage=stage,
        config=_normalised(dict(config)),
        inputs=dict(inputs),
        outputs=hashes,
        versions=versions(),
        seed=seed,
        counts=_normalised(dict(counts or {})),
        seconds=round(seconds, 3),
    )
    write_json(directory / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(directory: str | Path) -> Manifest | None:
    """The manifest of a stage's folder, or None when the stage has not finished.

    A manifest that cannot be understood counts as none: the stage is then simply run again.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest(**read_json(path))
    except (UserError, TypeError):
        return None


def up_to_date(directory: str | Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """True when the stage was completed with this config, these input hashes and these versions, and all
    its outputs are still there with the hashes that it recorded."""
    manifest = read_manifest(directory)
    if manifest is None:
        return False
    if (manifest.config, manifest.inputs, manifest.versions) != (
        _normalised(dict(config)),
        dict(inputs),
        versions(),
    ):
        return False
    directory = Path(directory)
    return all(
        (directory / relative).is_file() and sha256_file(directory / relative) == digest
        for relative, digest in manifest.outputs.items()
    )
