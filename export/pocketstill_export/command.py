"""The command `pocketstill export CHECKPOINT`: files and words of the command line as arguments of `export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pocketstill.bundle import SuiteItem, read_suite
from pocketstill.files import write_json
from pocketstill_export.card import Provenance
from pocketstill_export.checkpoint import PLAIN_TEMPLATE
from pocketstill_export.choice.budget import Budget
from pocketstill_export.choice.candidates import Tolerance
from pocketstill_export.errors import ExportError
from pocketstill_export.export import export
from pocketstill_export.report import write_export_report
from pocketstill_export.variants import DEFAULT


@dataclass(frozen=True)
class Request:
    """What the command line says, as it was typed; see `pocketstill export --help`."""

    checkpoint: str
    out: Path
    variants: str = ""
    name: str | None = None
    context_length: int | None = None
    max_new_tokens: int = 256
    calibrate: Path | None = None
    heldout: Path | None = None
    tensor_types: Sequence[str] = ()
    template: str | None = None
    revision: str | None = None
    converter: Path | None = None
    adapters: Sequence[str] = ()
    max_kl: float | None = None
    min_top1: float | None = None
    max_points: float | None = None
    suite: Path | None = None
    max_mib: float | None = None
    fastest: bool = False
    keep: str = "chosen"
    license: str | None = None
    teacher: str | None = None
    data: str | None = None


def export_command(request: Request) -> dict[str, Any]:
    """Exports, and writes `<out>.report.html` and `<out>.report.json` beside the folder.

    Raises:
        ExportError: the request cannot be carried out; see `export`.
    """
    budget = _budget(request)
    wanted = request.variants or ("all" if budget else ",".join(DEFAULT))
    result = export(
        request.checkpoint,
        request.out,
        variants=[part.strip() for part in wanted.split(",") if part.strip()],
        context_length=request.context_length,
        generation={"max_new_tokens": request.max_new_tokens, "temperature": 0.0},
        name=request.name,
        parity_texts=request.heldout or (),
        calibration=request.calibrate or (),
        tensor_types=dict(_pair(text, "--tensor-type", "REGEX=TYPE") for text in request.tensor_types),
        template=_template(request.template),
        revision=request.revision,
        converter=request.converter,
        adapters=dict(_pair(text, "--adapter", "NAME=DIR") for text in request.adapters),
        provenance=Provenance(license=request.license, teacher=request.teacher, data=request.data),
        budget=budget,
    )
    told = result.to_dict()
    page, plain = (request.out.with_name(f"{request.out.name}.report.{end}") for end in ("html", "json"))
    write_json(plain, told)
    write_export_report(told, page)
    return {
        "folder": str(result.folder),
        "default": result.default,
        "variants": {variant.name: variant.bytes for variant in result.variants},
        "kl_mean": {check.variant: check.kl_mean for check in result.parity.logits},
        "report": str(page),
    }


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    left, equals, right = text.rpartition("=")
    if not (left and equals and right):
        raise ExportError(f"{option} {text!r} is not {form}; write it as in {option} '{form}'")
    return left, right


def _template(given: str | None) -> str | None:
    if given is None or given == "plain":
        return PLAIN_TEMPLATE if given else None
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"--template {given}: cannot be read as UTF-8 text; give a file, or the word plain"
        ) from error


def _budget(request: Request) -> Budget | None:
    limits = (request.max_kl, request.min_top1, request.max_points)
    if all(limit is None for limit in limits):
        if request.max_mib is not None or request.fastest:
            raise ExportError("a choice needs a tolerance: give --max-kl, --min-top1, or --max-points with --suite")
        return None
    if (request.max_points is None) != (request.suite is None):
        raise ExportError("--max-points and --suite belong together: the questions tell how many points are lost")
    if request.keep not in ("chosen", "front", "all"):
        raise ExportError(f"--keep {request.keep}: choose from chosen, front, all")
    suite: list[SuiteItem] = read_suite(request.suite) if request.suite else []
    return Budget(
        tolerance=Tolerance(request.max_kl, request.min_top1, request.max_points),
        objective="fastest" if request.fastest else "smallest",
        keep=cast(Literal["chosen", "front", "all"], request.keep),
        suite=suite,
        max_bytes=None if request.max_mib is None else int(request.max_mib * 2**20),
    )
