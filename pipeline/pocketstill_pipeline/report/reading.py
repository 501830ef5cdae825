"""A finished run, read from the files that its stages left; nothing on the page comes from elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError
from pocketstill.files import read_json, sha256_file
from pocketstill.manifest import MANIFEST, Manifest, read_manifest

STAGES = ("collect", "curate", "distill", "export", "verify")

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run. `answers` maps a variant, and "checkpoint", to its answers to the suite.

    `manifests` holds those of `STAGES` that finished, `hashes` the SHA-256 of each.
    """

    root: Path
    report: Json
    answers: dict[str, list[Json]]
    stats: Json
    curve: list[Json]
    export: Json
    manifests: dict[str, Manifest]
    hashes: dict[str, str]

    @property
    def recipe(self) -> Json:
        recipe: Json = self.report["recipe"]
        return recipe

    @property
    def variants(self) -> list[Json]:
        rows: list[Json] = self.report["variants"]
        return rows

    @property
    def shipped(self) -> Json | None:
        """The variant that ships, None when no variant passed its gates."""
        return next((row for row in self.variants if row["variant"] == self.report["default"]), None)

    @property
    def shown(self) -> Json:
        """The variant that examples are shown of: the one that ships, else the one nearest to its gates."""
        return self.shipped or min(self.variants, key=lambda row: (len(row["failures"]), row["file_mib"]))

    @property
    def skills(self) -> list[str]:
        """The recipe's own skills first, in its order, then what is reported beside them without a gate."""
        own = [skill["name"] for skill in self.recipe["skills"]]
        measured = self.report["checkpoint"]["skills"]
        return [name for name in own if name in measured] + [name for name in measured if name not in own]


def read_run(root: Path) -> Run:
    """Read what the stages left under `root`.

    Raises:
        UserError: a file is missing, broken or of another form; the message names it and the stage that writes it.
    """
    report = _read(root, "verify", "report.json", "recipe", "default", "variants", "checkpoint", "teacher", "parity")
    if not report["variants"]:
        raise UserError(f"{root / 'verify' / 'report.json'}: it holds no variant; run `pocketstill verify` again")
    names = [*(row["variant"] for row in report["variants"]), "checkpoint"]
    answers = {name: _read(root, "verify", f"{name}.json", "answers")["answers"] for name in names}
    stats = _read(root, "curate", "stats.json", "teacher", "mistakes", "kept", "kept_by_route", "rejected")
    return Run(
        root=root,
        report=report,
        answers=answers,
        stats=stats,
        curve=_curve(root),
        export=_read(root, "export", "parity.json", "parity", "variants", "notes"),
        manifests=_manifests(root),
        hashes={s: sha256_file(path) for s in STAGES if (path := root / s / MANIFEST).is_file()},
    )


def _again(stage: str) -> str:
    return f"run `pocketstill {stage} RECIPE` first"


def _read(root: Path, stage: str, name: str, *keys: str) -> Json:
    path = root / stage / name
    if not path.is_file():
        raise UserError(f"{path}: the report needs it and it is not there; {_again(stage)}")
    found = read_json(path)
    absent = [key for key in keys if not isinstance(found, dict) or key not in found]
    if absent:
        raise UserError(f"{path}: it has no {absent[0]!r}; remove it and {_again(stage)}")
    return dict(found)


def _curve(root: Path) -> list[Json]:
    path = root / "distill" / "curve.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: the report needs it and it is not there; {_again('distill')}")
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}); {_again('distill')}") from None
    return lines


def _manifests(root: Path) -> dict[str, Manifest]:
    found = {stage: read_manifest(root / stage) for stage in STAGES}
    # A report is also written on the way, when verification has not left its manifest yet.
    for stage in STAGES[:-1]:
        if found[stage] is None:
            raise UserError(f"{root / stage / MANIFEST}: the report needs it and it is not there; {_again(stage)}")
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}
