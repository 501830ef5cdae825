"""The page: what an export wrote, how close it is to the checkpoint, and how to use it; one file, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pocketstill.errors import UserError
from pocketstill.template import render
from pocketstill_export.choice.pareto import Span, front
from pocketstill_export.errors import ExportError

from . import figures, words
from .drawing import Family

Json = dict[str, Any]

_MESSAGES = ({"role": "user", "content": "What can you do?"},)
_EXCERPT = 1200


@dataclass(frozen=True)
class Row:
    """A variant with all that is known of it: `check` its logits, `greedy` the share of greedy continuations that are
    the checkpoint's, `candidate` its part in the choice; each None where it was not measured.
    """

    name: str
    engine: Family
    file: str
    files: tuple[str, ...]
    bytes: int
    bits: float | None
    check: Json | None
    greedy: float | None
    candidate: Json | None
    front: bool
    shown: bool


def write_export_report(result: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the page of an export to `path`, and returns it.

    Args:
        result: `ExportResult.to_dict()`, with `Choice.to_dict()` under "choice" where there was one.
        path: the HTML file.

    Raises:
        ExportError: the page cannot be written.
    """
    path = Path(path)
    text = _environment().get_template("page.html.jinja").render(_context(result))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror}); free some space or mend the path") from None
    return path


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    found.filters |= {
        "label": words.label, "percent": words.percent, "figure": words.figure, "tiny": words.tiny, "mib": words.mib,
        "duration": words.duration, "points": words.points, "error": lambda value, of: words.error(of or 0.0, value),
    }  # fmt: skip
    return found


def _context(result: Mapping[str, Any]) -> Json:
    choice = result.get("choice")
    rows = variant_rows(result)
    shown = next((row for row in rows if row.shown), rows[0])
    folder = PurePath(result["folder"]).name or "model"
    bundle = Path(result["folder"])
    template = _template(result, bundle)
    checks = check_groups(result["parity"])
    return {
        "name": result.get("name") or folder,
        "folder": folder,
        "rows": rows,
        "greedy_known": any(row.greedy is not None for row in rows),
        "shown": shown,
        "choice": choice,
        "mixture": None if choice is None else _mixture(choice),
        "candidates": [] if choice is None else sorted(choice["candidates"], key=lambda row: row["bytes"]),
        "headline": headline(rows, shown, choice, result["parity"]),
        "parity": result["parity"],
        "checks": checks,
        "plots": plots(rows, choice),
        "parameters": _parameters(result),
        "code": [
            "import pocketstill",
            f"model = pocketstill.load({json.dumps(folder, ensure_ascii=False)})",
            'print(model.answer("What can you do?").answer)',
        ],
        "elsewhere": elsewhere(rows, folder),
        "stop_ids": result["stop_ids"],
        "template": template,
        "rendered": _rendered(template),
        "notes": list(dict.fromkeys([*result["notes"], *(choice["notes"] if choice else ())])),
        "steps": _steps(result),
    }


def variant_rows(result: Mapping[str, Any]) -> list[Row]:
    """Every variant of the folder, smallest first; the chosen, or else the default one, is `shown`."""
    choice = result.get("choice") or {}
    checks = {check["variant"]: check for check in result["parity"]["logits"]}
    said = result["parity"].get("generations") or ()
    greedy = {it["variant"]: it["same"] for it in said if it["against"] == "checkpoint"}
    candidates = {row["name"]: row for row in choice.get("candidates", ())}
    parameters = _parameters(result)
    shown = choice.get("chosen") or result.get("default")
    on_front = _size_front(result["variants"], checks)
    rows = []
    for it in sorted(result["variants"], key=lambda it: (it["bytes"], it["name"])):
        name, candidate = it["name"], candidates.get(it["name"])
        rows.append(
            Row(
                name, it["engine"], it["file"], tuple(it["files"]), it["bytes"],
                8 * it["bytes"] / parameters if parameters else None,
                checks.get(name), greedy.get(name), candidate,
                candidate["on_size_front"] if candidate else name in on_front,
                name == shown,
            )
        )  # fmt: skip
    return rows


def _size_front(variants: Sequence[Json], checks: Mapping[str, Json]) -> frozenset[str]:
    known = {it["name"]: checks[it["name"]] for it in variants if _kl(checks.get(it["name"])) is not None}
    sizes = {it["name"]: it["bytes"] for it in variants}
    return front(
        {
            name: (Span.exact(sizes[name]), Span.around(check["kl_mean"], check.get("kl_mean_error") or 0.0))
            for name, check in known.items()
        }
    )


def _kl(check: Mapping[str, Any] | None) -> float | None:
    return None if check is None else check.get("kl_mean")


def _parameters(result: Mapping[str, Any]) -> int | None:
    found = result.get("parameters") or (result.get("choice") or {}).get("parameters")
    return None if found is None else int(found)


def headline(rows: Sequence[Row], shown: Row, choice: Json | None, parity: Json) -> str:
    """The page in one sentence."""
    if not parity["passed"]:
        failed = words.count(len(parity["failures"]), "check")
        return f"This export is not the checkpoint: {failed} failed, and the first difference is named below."
    if choice is not None and choice["chosen"] is None:
        return f"Nothing fits: {choice['said']}."
    largest = rows[-1]
    if len(rows) == 1:
        said = f"One file of {words.mib(shown.bytes)} MiB"
    else:
        forms = words.count(len(rows), "form")
        said = f"One model in {forms}, {words.mib(rows[0].bytes)} to {words.mib(largest.bytes)} MiB"
    same = "the token ids, prompts and stops of its checkpoint in each"
    if shown.check is None:
        return f"{said}: {same}."
    top = words.with_percent(shown.check["top1"])
    return f"{said}: {same}. {shown.name} agrees with it on the next token {top} of the time."


def check_groups(parity: Mapping[str, Any]) -> list[Json]:
    """The checks by what was compared: how many passed, how much was compared, and the first difference of each."""
    groups: dict[str, list[Json]] = {}
    for check in parity["texts"]:
        groups.setdefault(check["what"], []).append(check)
    for check in parity["logits"]:
        groups.setdefault("next-token distributions", []).append({"compared": check["tokens"], **check})
    for check in parity.get("generations") or ():
        where = f"{check['variant']} and {check['against']}"
        found = {"compared": check["prompts"], **check, "variant": where}
        groups.setdefault("greedy continuations", []).append(found)
    return [
        {
            "what": what,
            "checks": found,
            "compared": sum(check["compared"] for check in found),
            "failed": [check for check in found if not check["passed"]],
        }
        for what, found in groups.items()
    ]


def plots(rows: Sequence[Row], choice: Json | None) -> list[tuple[str, str]]:
    """(caption, plot): size against KL, and decode speed against KL where it was measured."""
    found = []
    limit = choice["tolerance"]["kl_mean"] if choice else None
    sized = _marks(rows, choice, speed=False)
    if sized:
        title = "File size and mean KL: " + "; ".join(f"{it.label} {it.x:.3g} MiB, {words.tiny(it.kl)}" for it in sized)
        plot = figures.trade("size", title, sized, x_label="file, MiB", growing=False, limit=limit)
        found.append(("Size against closeness", plot))
    timed = _marks(rows, choice, speed=True)
    if timed:
        title = "Decode speed and mean KL: " + "; ".join(
            f"{it.label} {it.x:,.0f} tokens/s, {words.tiny(it.kl)}" for it in timed
        )
        plot = figures.trade("speed", title, timed, x_label="decode, tokens/s", growing=True, limit=limit)
        found.append(("Speed against closeness", plot))
    return found


def _marks(rows: Sequence[Row], choice: Json | None, *, speed: bool) -> list[figures.Mark]:
    """Every candidate of the choice, kept in the folder or not; without a choice, every variant of the folder."""
    shown = {row.name for row in rows if row.shown}
    marks = []
    if choice:
        measured = [
            (it["name"], it["engine"], it["bytes"], it, it["on_speed_front" if speed else "on_size_front"])
            for it in choice["candidates"]
        ]
    else:
        measured = [(row.name, row.engine, row.bytes, row.check, row.front) for row in rows]
    for name, engine, size, check, on_front in measured:
        kl = _kl(check)
        if kl is None or check is None or (speed and not check.get("decode_tok_s")):
            continue
        error = check.get("kl_mean_error") or 0.0
        x = size / 2**20
        ends = (check["decode_tok_s"], check["decode_low"], check["decode_high"]) if speed else (x, x, x)
        marks.append(
            figures.Mark(
                name.removeprefix("gguf-").removeprefix("onnx-"), engine, *ends, kl, kl - error, kl + error,
                on_front, name in shown,
            )
        )  # fmt: skip
    return marks


def _mixture(choice: Json) -> Json | None:
    """The mixed variant's types by tensor in plain names, and what each group would save alone."""
    searched = choice["searched"]
    if searched is None:
        return None
    mixed = next((row for row in choice["candidates"] if row["tensor_types"]), None)
    best: dict[str, Json] = {}
    for gain in searched["gains"]:
        rate = 1024 * gain["kl_saved"] / gain["bytes"]
        if gain["group"] not in best or rate > best[gain["group"]]["rate"]:
            best[gain["group"]] = gain | {"rate": rate}
    types = {} if mixed is None else {_plain(pattern): type_ for pattern, type_ in mixed["tensor_types"].items()}
    gains = sorted(best.values(), key=lambda gain: -gain["rate"])
    return {"searched": searched, "types": types, "gains": gains, "most": max((g["rate"] for g in gains), default=0.0)}


def _plain(pattern: str) -> str:
    r"""A group's regular expression as words: `^blk\.(0|1)\.attn_q\.weight$` is "attn_q of layers 0, 1"."""
    inner = pattern.removeprefix("^").removesuffix("$").removesuffix(r"\.weight")
    if not inner.startswith(r"blk\."):
        return inner
    layers, _, role = inner.removeprefix(r"blk\.").rpartition(r"\.")
    return role if layers == r"\d+" else f"{role} of layers {layers.strip('()').replace('|', ', ')}"


def elsewhere(rows: Sequence[Row], folder: str) -> list[tuple[str, str]]:
    """(runtime, what to type) for the other runtimes that read the folder."""
    gguf = next((row for row in rows if row.engine == "gguf" and row.shown), None)
    gguf = gguf or next((row for row in rows if row.engine == "gguf"), None)
    found = []
    if gguf is not None:
        found.append(("llama.cpp", f"llama-cli -m {folder}/{gguf.file}"))
    types = {"onnx/model_q4.onnx": "q4", "onnx/model.onnx": "fp32", "onnx/model_fp16.onnx": "fp16"}
    onnx = next((types[row.file] for row in rows if row.engine == "onnx" and row.file in types), None)
    if onnx is not None:
        where = json.dumps(f"./{folder}", ensure_ascii=False)
        found.append(("transformers.js", f'await pipeline("text-generation", {where}, {{dtype: "{onnx}"}})'))
    if any(row.engine == "onnx" for row in rows):
        found.append(("onnxruntime-genai", f"onnxruntime_genai.Model({json.dumps(folder, ensure_ascii=False)})"))
    return found


def _template(result: Mapping[str, Any], bundle: Path) -> str | None:
    """The chat template as the folder has it; None where the folder is gone."""
    if result.get("template"):
        return str(result["template"])
    try:
        return (bundle / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _rendered(template: str | None) -> str | None:
    """A short question as the model sees it; None where the template refuses it."""
    if template is None:
        return None
    try:
        return render(template, _MESSAGES)
    except UserError:
        return None


def _steps(result: Mapping[str, Any]) -> list[Json]:
    """Each step's seconds, its share of the longest, and its peak of memory where it was measured."""
    seconds = dict(result["seconds"])
    for step, took in ((result.get("choice") or {}).get("seconds") or {}).items():
        seconds[f"choice: {step}"] = took
    memory = result.get("memory_mib") or {}
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        {"step": step, "seconds": took, "share": took / longest, "memory": memory.get(step)}
        for step, took in seconds.items()
    ]
