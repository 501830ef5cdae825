"""Quantized GGUF files, by llama.cpp's own quantizer in this process, and what it will choose, told beforehand."""

from __future__ import annotations

import difflib
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from pocketstill_export.checkpoint import Checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.imatrix import Imatrix
from pocketstill_export.gguf.llama_quantizer import Planned, Request, planned_types, run_quantizer
from pocketstill_export.variants import GgufKind

if TYPE_CHECKING:
    import numpy.typing as npt

# What one tensor may be stored as; a kind such as q4_k_m is a mixture of these.
TENSOR_TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl",
                "iq4_xs", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs", "iq2_xxs")  # fmt: skip
FULL = ("f32", "bf16", "f16")
# llama.cpp refuses these without an importance matrix (`tensor_requires_imatrix` in its src/llama-quant.cpp): what
# they hold by default, or in q and k for iq3_xs, is one of the first five types below, or q2_k without its safeguards.
_KINDS_WITH_IMATRIX = ("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs")
_TYPES_WITH_IMATRIX = ("iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs")
# Of those, the ones whose code ends the whole process when weights are missing, even for the embedding and the head.
_TYPES_THAT_ABORT = ("iq2_xs", "iq2_xxs")
_HEADS = ("token_embd.weight", "output.weight")
# Every block that a type packs divides this; these kinds pack 32 weights of a row.
_WIDEST = 256
_NARROW_KINDS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
IMATRIX_FILE = "imatrix.gguf"


def needs_imatrix(kind: str) -> bool:
    """Whether llama.cpp refuses to make this kind without an importance matrix."""
    return kind in _KINDS_WITH_IMATRIX


def quantize_gguf(
    source: str | Path,
    target: str | Path,
    kind: GgufKind,
    *,
    imatrix: Imatrix | None = None,
    tensor_types: Mapping[str, str] | None = None,
    token_embedding: str | None = None,
    output: str | None = None,
    threads: int | None = None,
) -> None:
    """Quantizes the GGUF file `source` (f32, bf16 or f16) into `target`; the same inputs give the same bytes.

    Args:
        source: what `write_gguf` wrote.
        target: put in place only when it is whole.
        kind: the mixture of types.
        imatrix: how much each column of each matrix matters; its dataset and number of entries go into the file's
            metadata, as llama.cpp's own tool records them.
        tensor_types: regular expression (std::regex, ECMAScript) over GGUF tensor names to the type of the tensors
            it finds; the first one that fits decides. A width that the type cannot take falls back, as by itself.
        token_embedding: the type of the embedding; with a tied head it is the head's too.
        output: the type of the head; with a tied head it is used unless `token_embedding` says otherwise.
        threads: 1 to 8 by default.

    Raises:
        ExportError: the kind asks for an importance matrix, the matrix was made for another model, a type or
            regular expression is wrong or fits nothing, or llama.cpp fails, on a full disk for instance; no
            half-written `target` is left.
    """
    source, target = Path(source), Path(target)
    request = _request(source, kind, imatrix, tensor_types or {}, token_embedding, output, threads)
    _check_plan(source, request)
    partial = target.with_name(f".{target.name}.partial")
    try:
        try:
            run_quantizer(source, partial, request)
        except ExportError as error:
            raise ExportError(
                f"llama.cpp could not quantize {source.name} to {kind} ({error}); "
                f"free some space beside {target} or leave the variant out"
            ) from None
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def plan_gguf(
    checkpoint: Checkpoint,
    kind: GgufKind,
    *,
    imatrix: Imatrix | None = None,
    tensor_types: Mapping[str, str] | None = None,
    token_embedding: str | None = None,
    output: str | None = None,
) -> dict[str, str]:
    """The type that each tensor would get, by GGUF name, without reading a weight; checks what quantize_gguf checks.

    Raises:
        ExportError: as quantize_gguf does, before any work.
    """
    with tempfile.TemporaryDirectory(prefix="pocketstill-") as folder:
        path = Path(folder) / "shapes.gguf"
        _write_shapes(checkpoint, path, _shapes(checkpoint))
        request = _request(path, kind, imatrix, tensor_types or {}, token_embedding, output, 1)
        return _check_plan(path, request)


def fallback_note(checkpoint: Checkpoint, kind: GgufKind, *, calibrated: bool = False) -> str | None:
    """Which matrices are too narrow for their type, and what they become instead; None when all fit.

    Told before any work is done. llama.cpp is asked twice, for the checkpoint's own widths and for the next ones
    that every type can take: what differs, differs because of the width.

    Args:
        checkpoint: only its shapes are read.
        kind: full ones always fit.
        calibrated: whether there will be an importance matrix; with one, some kinds mix their types otherwise.
    """
    from pocketstill_export.gguf.params import ARCHITECTURES

    if kind in FULL:
        return None
    if checkpoint.architecture not in ARCHITECTURES:
        return _rough_note(checkpoint, kind)
    real = _shapes(checkpoint)
    wide = {name: (*shape[:-1], -(-shape[-1] // _WIDEST) * _WIDEST) for name, shape in real.items()}
    # That there are weights at all is what matters here, not whose.
    weights = {"any": np.ones(1, dtype=np.float32)} if calibrated or needs_imatrix(kind) else {}
    with tempfile.TemporaryDirectory(prefix="pocketstill-") as folder:
        plans = []
        for file, shapes in (("real", real), ("wide", wide)):
            path = Path(folder) / f"{file}.gguf"
            _write_shapes(checkpoint, path, shapes)
            plans.append(_plan(path, Request(kind, weights=weights, threads=1)))
    wanted = {name: tensor.after for name, tensor in plans[1].items() if tensor.after != tensor.before}
    groups: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for name, asked in wanted.items():
        if (found := plans[0][name]).after != asked:
            groups[asked, found.after][name] = found.width
    if not groups:
        return None
    parts = [
        f"{len(names)} in {became} instead of {asked} ({_listed(names)})" for (asked, became), names in groups.items()
    ]
    count = sum(map(len, groups.values()))
    told = f"gguf-{kind}: {count} of {len(wanted)} matrices have rows that their type cannot take"
    return f"{told}: {'; '.join(sorted(parts))}"


def _rough_note(checkpoint: Checkpoint, kind: GgufKind) -> str | None:
    """For architectures that only llama.cpp's own converter knows: what each matrix becomes is known after it ran."""
    block = 32 if kind in _NARROW_KINDS else _WIDEST
    widths = {name: shape[-1] for name, shape in checkpoint.shapes.items() if len(shape) == 2}
    odd = {name: width for name, width in widths.items() if width % block}
    if not odd:
        return None
    name, width = next(iter(odd.items()))
    return (
        f"gguf-{kind}: {len(odd)} of {len(widths)} matrices have rows that are no multiple of {block} "
        f"({name}: {width}), and will be stored in a larger type"
    )


def _request(
    source: Path,
    kind: str,
    imatrix: Imatrix | None,
    tensor_types: Mapping[str, str],
    token_embedding: str | None,
    output: str | None,
    threads: int | None,
) -> Request:
    if kind in FULL or kind not in get_args(GgufKind):
        raise ExportError(f"{kind} is no quantized GGUF kind; choose one of {', '.join(get_args(GgufKind)[3:])}")
    if imatrix is None and needs_imatrix(kind):
        raise ExportError(
            f"gguf-{kind} is garbage without an importance matrix; name a text with --calibrate, or leave it out"
        )
    return Request(
        kind,
        weights={} if imatrix is None else _mean_squares(imatrix),
        overrides=[(pattern, _type_number(name)) for pattern, name in tensor_types.items()],
        token_embedding=None if token_embedding is None else _type_number(token_embedding),
        output=None if output is None else _type_number(output),
        metadata={} if imatrix is None else _provenance(imatrix),
        threads=threads,
    )


def _mean_squares(imatrix: Imatrix) -> dict[str, npt.NDArray[np.float32]]:
    """What llama.cpp's quantize tool hands to the quantizer: the sums over the number of tokens."""
    return {name: imatrix.sums[name] / np.float32(max(imatrix.counts[name], 1)) for name in sorted(imatrix.sums)}


def _provenance(imatrix: Imatrix) -> dict[str, str | int]:
    """The keys of llama.cpp's quantize tool, without the folders that its paths would tell of."""
    found: dict[str, str | int] = {"quantize.imatrix.file": IMATRIX_FILE}
    if imatrix.dataset:
        found["quantize.imatrix.dataset"] = re.split(r"[/\\]", imatrix.dataset.rstrip("/\\"))[-1]
    found["quantize.imatrix.entries_count"] = len(imatrix.sums)
    if imatrix.chunks:
        found["quantize.imatrix.chunks_count"] = imatrix.chunks
    return found


def _type_number(name: str) -> int:
    import gguf

    if name.lower() in TENSOR_TYPES:
        return int(gguf.GGMLQuantizationType[name.upper()])
    near = difflib.get_close_matches(name.lower(), TENSOR_TYPES, 1)
    raise ExportError(
        f"there is no tensor type {name!r}{f'; did you mean {near[0]}?' if near else ''}; "
        f"choose from {', '.join(TENSOR_TYPES)}"
    )


def _check_plan(source: Path, request: Request) -> dict[str, str]:
    """The plan; refuses what llama.cpp would ignore in silence, or end the process over."""
    model = _plan(source, Request("q8_0", threads=1))
    _check_head_types(model, request)
    for pattern, _ in request.overrides:
        _check_pattern(source, model, pattern)
    plan = _plan(source, request)
    if request.weights:
        _check_weights(request, plan)
    for name, tensor in plan.items():
        asking = _TYPES_THAT_ABORT if name in _HEADS else _TYPES_WITH_IMATRIX
        if tensor.after in asking and name not in request.weights:
            raise ExportError(
                f"{name} would be {tensor.after}, which asks for an importance matrix that covers it; "
                "name a text with --calibrate or choose another type"
            )
    return {name: tensor.after for name, tensor in plan.items()}


def _plan(source: Path, request: Request) -> dict[str, Planned]:
    try:
        return planned_types(source, request)
    except ExportError as error:
        raise ExportError(
            f"llama.cpp could not quantize {source.name} to {request.kind} ({error}); leave the variant out"
        ) from None


def _check_head_types(model: Mapping[str, Planned], request: Request) -> None:
    """llama.cpp takes these two types as they are, whatever the width, and ends the process where they do not fit."""
    import gguf

    head = _HEADS[1] if _HEADS[1] in model else _HEADS[0]
    for what, name, number in (("embedding", _HEADS[0], request.token_embedding), ("head", head, request.output)):
        if number is None or name not in model:
            continue
        kind = gguf.GGMLQuantizationType(number)
        block, width = gguf.GGML_QUANT_SIZES[kind][0], model[name].width
        if width % block:
            raise ExportError(
                f"{kind.name.lower()} cannot store the {what}, whose rows of {width} are no multiple of {block}; "
                "choose f16"
            )


def _check_pattern(source: Path, model: Mapping[str, Planned], pattern: str) -> None:
    """Asks llama.cpp itself, whose regular expressions are std::regex and not Python's.

    `model` is the plan of q8_0; asked for f32 instead, the tensors that the expression finds stand out.
    """
    try:
        types = planned_types(source, Request("q8_0", overrides=[(pattern, _type_number("f32"))], threads=1))
    except ExportError as error:
        raise ExportError(f"tensor type {pattern!r}: {error}; mend the regular expression") from None
    if all(types[name].after == tensor.after for name, tensor in model.items()):
        names = _short(name for name, tensor in model.items() if tensor.after != tensor.before)
        raise ExportError(f"tensor type {pattern!r} fits no matrix; their names are {', '.join(names)}")


def _check_weights(request: Request, plan: Mapping[str, Planned]) -> None:
    advice = "compute it anew from this checkpoint"
    for name, values in request.weights.items():
        if name not in plan:
            raise ExportError(f"the importance matrix has an entry {name}, which the model has not; {advice}")
        if values.size != plan[name].width:
            raise ExportError(
                f"the importance matrix has {values.size} values for {name}, whose rows have {plan[name].width}; "
                + advice
            )
    wanted = [name for name, tensor in plan.items() if tensor.after not in FULL and name not in _HEADS]
    if missing := [name for name in wanted if name not in request.weights]:
        others = f"{len(missing) - 1} of {len(wanted)} others"
        raise ExportError(f"the importance matrix has no entry for {missing[0]} and {others}; {advice}")


def _short(names: Iterable[str]) -> list[str]:
    """Tensor names, those of all layers as one: `blk.*.attn_q.weight`."""
    return sorted({re.sub(r"^blk\.\d+\.", "blk.*.", name) for name in names})


def _listed(widths: Mapping[str, int]) -> str:
    """`64 wide: blk.*.attn_k, blk.*.attn_q` and so on."""
    by_width: defaultdict[int, list[str]] = defaultdict(list)
    for name, width in widths.items():
        by_width[width].append(name.removesuffix(".weight"))
    return "; ".join(f"{width} wide: {', '.join(_short(names))}" for width, names in sorted(by_width.items()))


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes by GGUF name, rows last. GPT-2's Conv1D holds its matrices the other way round."""
    from pocketstill_export.gguf.params import ARCHITECTURES
    from pocketstill_export.gguf.write import tensor_names

    if checkpoint.architecture not in ARCHITECTURES:
        raise ExportError(f"{checkpoint.folder}: {checkpoint.architecture} has types only once it is converted")
    names = tensor_names(checkpoint)
    turned = checkpoint.architecture == "GPT2LMHeadModel"
    found = {}
    for source, shape in checkpoint.shapes.items():
        if source in names:
            conv = turned and len(shape) == 2 and ".c_" in source
            found[names[source]] = shape[::-1] if conv else shape
    return found


def _write_shapes(checkpoint: Checkpoint, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A GGUF file of the model's shape without its weights: a hole where they would be, which takes no disk."""
    import gguf

    from pocketstill_export.gguf.params import ARCHITECTURES, add_hyperparameters

    architecture = getattr(gguf.MODEL_ARCH, ARCHITECTURES[checkpoint.architecture][0])
    writer = gguf.GGUFWriter(path=path, arch=gguf.MODEL_ARCH_NAMES[architecture])
    add_hyperparameters(writer, checkpoint, int(checkpoint.config.max_position_embeddings))
    size = 0
    for name, shape in shapes.items():
        nbytes = 4 * math.prod(shape)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes)
        size += gguf.GGUFWriter.ggml_pad(nbytes, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        start = gguf.GGUFWriter.ggml_pad(file.tell(), writer.data_alignment)
        file.truncate(start + size)
