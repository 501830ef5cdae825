"""The bundle: the folder that ships. Reading it, refusing what does not match, and writing its index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, TypeVar, cast

from pocketstill.errors import BundleError, UserError
from pocketstill.files import read_json, sha256_file, write_json
from pocketstill.grading import KINDS, Kind

INDEX = "pocketstill.json"
SUITE = "suite.jsonl"
SCHEMA = 1

EngineName = Literal["onnx", "gguf"]
_ENGINES: tuple[EngineName, ...] = ("onnx", "gguf")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Variant:
    """One form of the student's weights. Paths are relative to the bundle; `bytes` sums `files`.

    `adapters` has the file of each LoRA adapter that is kept apart, by the adapter's name.
    """

    name: str
    engine: EngineName
    file: str
    files: tuple[str, ...]
    bytes: int
    adapters: Mapping[str, str] = field(default_factory=dict, hash=False)

    def adapter_file(self, adapter: str) -> str:
        """The file of the adapter of that name.

        Raises:
            BundleError: there is none; the message lists those there are.
        """
        if adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise BundleError(f"{self.name} has no adapter {adapter!r}; choose from: {known}")
        return self.adapters[adapter]


@dataclass(frozen=True)
class SuiteItem:
    """One question of the suite that verifies the bundle."""

    id: str
    skill: str
    messages: tuple[dict[str, str], ...]
    gold: str
    answer_kind: Kind
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A bundle's index, read and checked. See `Bundle.load`."""

    folder: Path
    name: str
    version: str
    variants: tuple[Variant, ...]
    default: str
    stop_ids: tuple[int, ...]
    template: str
    tokenizer: Path
    generation: dict[str, Any]
    context_length: int
    threads: dict[str, int]
    skills: dict[str, dict[str, Any]]
    files: dict[str, dict[str, Any]]
    verification: dict[str, Any] | None = None
    lineage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, check: bool = True) -> Bundle:
        """Reads `folder/pocketstill.json` and holds the folder to it.

        With `check`, every file's size and SHA-256 are compared as well, and files that the index does not
        name are refused. Paths are always held to be relative, inside the folder and free of links.

        Raises:
            BundleError: whatever does not match; the message names the file.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise BundleError(f"no bundle at {folder}: there is no such folder; give the folder that `bundle` wrote")
        if not (folder / INDEX).is_file() or (folder / INDEX).is_symlink():
            raise BundleError(f"{folder} is not a bundle: it has no {INDEX}; give the folder that `bundle` wrote")
        try:
            index = read_json(folder / INDEX)
        except UserError as error:
            raise BundleError(str(error)) from error
        bundle = _parse(folder, index)
        _check_paths(bundle)
        if check:
            _check_contents(bundle)
        return bundle

    def variant(self, name: str | None = None) -> Variant:
        """The variant of that name, or the default one.

        Raises:
            BundleError: when the bundle has no such variant; the message lists those it has.
        """
        wanted = name or self.default
        for variant in self.variants:
            if variant.name == wanted:
                return variant
        names = ", ".join(v.name for v in self.variants)
        raise BundleError(f"{self.folder} has no variant {wanted!r}; it has {names}")

    def suite(self) -> list[SuiteItem]:
        """The questions of suite.jsonl, in its order.

        Raises:
            BundleError: when the suite is absent or a line of it is broken.
        """
        if not (self.folder / SUITE).is_file():
            raise BundleError(f"{self.folder} has no {SUITE}; without its questions it cannot be verified")
        return read_suite(self.folder / SUITE)


def read_suite(path: Path) -> list[SuiteItem]:
    """The questions of a suite's file, a JSON object a line, in its order.

    Raises:
        BundleError: the file cannot be read or a line of it is broken.
    """
    items: dict[str, SuiteItem] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read as UTF-8 text; give a suite.jsonl") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = _suite_item(json.loads(line))
            if item.id in items:
                raise ValueError(f"id {item.id!r} occurs twice")
            items[item.id] = item
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(f"{path}, line {number}: not a suite item ({error}); mend or remove the line") from error
    return list(items.values())


def _suite_item(row: Mapping[str, Any]) -> SuiteItem:
    if row["answer_kind"] not in KINDS:
        raise ValueError(f"answer_kind {row['answer_kind']!r} is none of {', '.join(KINDS)}")
    return SuiteItem(
        id=str(row["id"]),
        skill=str(row["skill"]),
        messages=tuple({"role": str(m["role"]), "content": str(m["content"])} for m in row["messages"]),
        gold=str(row["gold"]),
        answer_kind=row["answer_kind"],
        tags=tuple(str(tag) for tag in row.get("tags", ())),
    )


def _take(index: Mapping[str, Any], key: str, kind: type[_T], where: Path) -> _T:
    value = index.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(f"{where / INDEX}: {key!r} is missing or not a {kind.__name__}; bundle it again")
    return value


def _parse_variants(folder: Path, index: Mapping[str, Any]) -> tuple[Variant, ...]:
    variants = []
    for row in _take(index, "variants", list, folder):
        try:
            engine = row["engine"]
            if engine not in _ENGINES:
                raise ValueError(f"engine {engine!r} is none of {', '.join(_ENGINES)}")
            variants.append(
                Variant(
                    str(row["name"]),
                    engine,
                    str(row["file"]),
                    tuple(map(str, row["files"])),
                    int(row["bytes"]),
                    {str(k): str(v) for k, v in dict(row.get("adapters") or {}).items()},
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder / INDEX}: broken entry under 'variants' ({error}); bundle it again") from error
    return tuple(variants)


def _parse(folder: Path, index: Any) -> Bundle:
    """From JSON values to a Bundle; types are checked here, paths and hashes by the callers."""
    if not isinstance(index, dict) or index.get("schema") != SCHEMA:
        raise BundleError(f"{folder / INDEX}: schema is not {SCHEMA}; this pocketstill cannot read it, upgrade it")
    variants = _parse_variants(folder, index)
    template = _take(index, "chat_template", str, folder)
    tokenizer = _take(index, "tokenizer", str, folder)
    safe_path(folder, tokenizer)
    stop_ids = _take(index, "stop_ids", list, folder)
    if not all(isinstance(i, int) for i in stop_ids):
        raise BundleError(f"{folder / INDEX}: 'stop_ids' are not whole numbers; bundle it again")
    try:
        template_text = safe_path(folder, template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / template}: the chat template cannot be read ({error})") from error
    bundle = Bundle(
        folder=folder,
        name=_take(index, "name", str, folder),
        version=str(index.get("version", "0")),
        variants=variants,
        default=_take(index, "default_variant", str, folder),
        stop_ids=tuple(stop_ids),
        template=template_text,
        tokenizer=folder / tokenizer,
        generation=_take(index, "generation", dict, folder),
        context_length=_take(index, "context_length", int, folder),
        threads={str(k): int(v) for k, v in dict(index.get("threads") or {}).items()},
        skills=_take(index, "skills", dict, folder),
        files=_take(index, "files", dict, folder),
        verification=index.get("verification"),
        lineage=dict(index.get("lineage") or {}),
    )
    bundle.variant()
    unlisted = [
        path
        for path in (template, tokenizer, *(f for v in variants for f in (v.file, *v.files, *v.adapters.values())))
        if path not in bundle.files
    ]
    if unlisted:
        raise BundleError(f"{folder / INDEX}: {unlisted[0]} is used but not listed under 'files'; bundle it again")
    return bundle


def safe_path(folder: Path, relative: str) -> Path:
    """`folder / relative`, refused when it could name anything but a plain file inside of `folder`.

    Raises:
        BundleError: for absolute paths, drive letters, backslashes, `..`, and links anywhere on the way.
    """
    pure = PurePosixPath(relative)
    windows = PureWindowsPath(relative)
    if (
        not relative
        or "\0" in relative
        or "\\" in relative
        or pure.is_absolute()
        or windows.drive
        or windows.root
        or ".." in pure.parts
        or pure.as_posix() != relative
    ):
        raise BundleError(f"{folder / INDEX}: unsafe path {relative!r}; paths must be relative and inside the bundle")
    path = folder
    for part in pure.parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle holds plain files only, copy the file in its place")
    return path


def _check_paths(bundle: Bundle) -> None:
    for relative in bundle.files:
        if not safe_path(bundle.folder, relative).is_file():
            raise BundleError(f"{bundle.folder / relative} is missing; copy the bundle again")


def _check_contents(bundle: Bundle) -> None:
    for path in sorted(bundle.folder.rglob("*")):
        relative = path.relative_to(bundle.folder).as_posix()
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle holds plain files only, copy the file in its place")
        if path.is_file() and relative not in bundle.files and relative != INDEX:
            raise BundleError(f"{path} is not listed in {INDEX}; remove it, or bundle the folder again")
    for relative, entry in bundle.files.items():
        path = bundle.folder / relative
        if not isinstance(entry, dict) or "sha256" not in entry or "bytes" not in entry:
            raise BundleError(f"{bundle.folder / INDEX}: {relative} has no size and hash; bundle it again")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise BundleError(f"{path} has changed since the bundle was made; copy the bundle again")


def write_bundle_json(
    folder: str | Path,
    *,
    name: str,
    variants: Sequence[Variant],
    default: str,
    stop_ids: Sequence[int],
    generation: Mapping[str, Any],
    context_length: int,
    skills: Mapping[str, Mapping[str, Any]],
    version: str = "1",
    threads: Mapping[str, int] | None = None,
    chat_template: str = "chat_template.jinja",
    tokenizer: str = "tokenizer.json",
    verification: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Bundle:
    """Hashes every file of `folder` but the index itself, writes pocketstill.json and reads it back.

    A variant's `bytes` is counted again here, so any number may be passed.

    Raises:
        BundleError: when the folder holds a link, or a file that a variant names is not in it.
    """
    folder = Path(folder)
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle holds plain files only, copy the file in its place")
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != INDEX:
            files[relative] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    rows = []
    for variant in variants:
        absent = [f for f in (variant.file, *variant.files, *variant.adapters.values()) if f not in files]
        if absent:
            raise BundleError(f"variant {variant.name}: {folder / absent[0]} was not written; export it again")
        size = sum(cast(int, files[f]["bytes"]) for f in variant.files)
        rows.append(
            {
                "name": variant.name,
                "engine": variant.engine,
                "file": variant.file,
                "files": list(variant.files),
                "bytes": size,
                **({"adapters": dict(variant.adapters)} if variant.adapters else {}),
            }
        )
    write_json(
        folder / INDEX,
        {
            "schema": SCHEMA,
            "name": name,
            "version": version,
            "default_variant": default,
            "variants": rows,
            "files": files,
            "stop_ids": [int(i) for i in stop_ids],
            "chat_template": chat_template,
            "tokenizer": tokenizer,
            "generation": dict(generation),
            "context_length": context_length,
            "threads": dict(threads or {}),
            "skills": {k: dict(v) for k, v in skills.items()},
            "verification": dict(verification) if verification is not None else None,
            "lineage": dict(lineage or {}),
        },
    )
    return Bundle.load(folder, check=False)
