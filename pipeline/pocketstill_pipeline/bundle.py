"""Bundle: the folder that ships, made of what was verified, with the report beside it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from pocketstill.bundle import Bundle, Variant
from pocketstill.errors import UserError
from pocketstill.files import read_json, sha256_file, write_json
from pocketstill.manifest import MANIFEST, read_manifest, up_to_date, write_manifest

from .export import write_index
from .recipe import Recipe
from .report import model_card, write_report

_STAGES = ("collect", "curate", "distill", "export", "verify")


def bundle(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Write `root`/device (what ships), `root`/report.html, and `root`/manifest.json last.

    The default variant ships, and with it the smallest one of the other engine that passed too, so that an app may
    take either.

    Raises:
        UserError: no variant passed its gates; the report is written all the same, and says which.
    """
    if read_manifest(root / "verify") is None:
        raise UserError(f"{root / 'verify'}: not verified yet; run `pocketstill verify RECIPE` first")
    config: dict[str, Any] = {"name": recipe.name, "notes": recipe.notes}
    # The report and the lineage tell of every stage, so any that ran again makes them anew.
    inputs = _lineage(root)
    report = read_json(root / "verify" / "report.json")
    if up_to_date(root, config, inputs):
        return _summary(root, report)
    started = time.monotonic()
    (root / MANIFEST).unlink(missing_ok=True)
    page = write_report(root, root / "report.html")
    if report["default"] is None:
        reasons = "; ".join(f"{row['variant']}: {row['failures'][0]}" for row in report["variants"][:3])
        raise UserError(f"no variant passed its gates ({reasons}); {page} shows all of them")
    _assemble(root, report)
    write_manifest(
        root,
        stage="bundle",
        config=config,
        inputs=inputs,
        outputs=["device", "report.html"],
        seed=None,
        counts={"default": report["default"]},
        seconds=time.monotonic() - started,
    )
    return _summary(root, report)


def _assemble(root: Path, report: dict[str, Any]) -> None:
    """Copy what ships beside `device` and rename it into place when it is whole."""
    exported, device, partial = root / "export" / "model", root / "device", root / ".device.partial"
    source = Bundle.load(exported)
    variants = _shipped(source, report)
    unshipped = {file for variant in source.variants for file in variant.files}
    unshipped -= {file for variant in variants for file in variant.files}
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(exported, partial, ignore=lambda folder, names: _left_out(exported, folder, names, unshipped))
    _name_decoder(partial, variants)
    _name_gguf(partial, variants)
    (partial / "MODEL_CARD.md").write_text(model_card(root), encoding="utf-8")
    rows = {row["variant"]: row for row in report["variants"]}
    default = rows[report["default"]]
    verification = {key: value for key, value in default.items() if key != "examples"}
    write_index(
        partial,
        source,
        variants=variants,
        default=report["default"],
        threads={variant.name: rows[variant.name]["threads"] for variant in variants},
        verification=verification,
        lineage=_lineage(root),
    )
    shutil.rmtree(device, ignore_errors=True)
    partial.rename(device)


def _lineage(root: Path) -> dict[str, str]:
    """SHA-256 of every stage's manifest."""
    found = {stage: root / stage / MANIFEST for stage in _STAGES}
    return {stage: sha256_file(path) for stage, path in found.items() if path.is_file()}


def _shipped(source: Bundle, report: dict[str, Any]) -> list[Variant]:
    passed = sorted((row for row in report["variants"] if row["passed"]), key=lambda row: row["file_mib"])
    first = source.variant(report["default"])
    others = [source.variant(row["variant"]) for row in passed if row["engine"] != first.engine]
    return [first, *others[:1]]


def _name_decoder(folder: Path, variants: list[Variant]) -> None:
    """Have genai_config.json, for those who open the folder with onnxruntime-genai itself, name a file that ships."""
    path = folder / "genai_config.json"
    file = next((variant.file for variant in variants if variant.engine == "onnx"), None)
    if file is None:
        path.unlink(missing_ok=True)
        return
    config = read_json(path)
    if config["model"]["decoder"]["filename"] != file:
        config["model"]["decoder"]["filename"] = file
        write_json(path, config)


def _name_gguf(folder: Path, variants: list[Variant]) -> None:
    """Have the Modelfile, for those who open the folder with Ollama, name a file that ships."""
    path = folder / "Modelfile"
    file = next((variant.file for variant in variants if variant.engine == "gguf"), None)
    if file is None or not path.is_file():
        path.unlink(missing_ok=True)
        return
    _, rest = path.read_text(encoding="utf-8").split("\n", 1)
    path.write_text(f"FROM ./{file}\n{rest}", encoding="utf-8")


def _left_out(top: Path, folder: str, names: list[str], unshipped: set[str]) -> list[str]:
    here = Path(folder).relative_to(top)
    return [name for name in names if (here / name).as_posix() in unshipped]


def _summary(root: Path, report: dict[str, Any]) -> dict[str, Any]:
    best = next(row for row in report["variants"] if row["variant"] == report["default"])
    return {
        "bundle": str(root / "device"),
        "report": str(root / "report.html"),
        "variant": best["variant"],
        "file_mib": best["file_mib"],
        "decode_tok_s": best["decode_tok_s"],
        "skills": {name: skill["accuracy"] for name, skill in best["skills"].items()},
    }
