"""Quantized files are llama.cpp's own, told beforehand, and refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("llama_cpp", reason="needs the gguf extra")

from export_students import IDS, gguf_variant, make_student, worst_kl
from imatrix_cases import CASES, make_case

from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.imatrix import Imatrix, compute_imatrix, write_imatrix
from pocketstill_export.gguf.llama_quantizer import Request, run_quantizer
from pocketstill_export.gguf.quantize import (
    FULL,
    IMATRIX_FILE,
    fallback_note,
    needs_imatrix,
    plan_gguf,
    quantize_gguf,
)
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.parity.logits import F16_KL, reference_logits
from pocketstill_export.variants import GgufKind

KINDS: tuple[GgufKind, ...] = tuple(kind for kind in get_args(GgufKind) if kind not in FULL)
WIDE = {"hidden_size": 256, "intermediate_size": 256, "tie_word_embeddings": False}


class Made:
    """A checkpoint, its f32 file and its importance matrix."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.checkpoint: Checkpoint = read_checkpoint(make_student(folder / "student", **config))
        self.full = folder / "f32.gguf"
        write_gguf(self.checkpoint, self.full, precision="f32", context_length=128, name="t")
        self.imatrix: Imatrix = compute_imatrix(self.checkpoint, IDS, dataset="/home/someone/data/train.parquet")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("wide"), **WIDE)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Rows of 64 and of 80, tied."""
    return Made(tmp_path_factory.mktemp("narrow"), intermediate_size=80)


def types_of(path: Path) -> dict[str, str]:
    import gguf

    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}


def test_half_precision_and_quantized(tmp_path: Path) -> None:
    made = Made(tmp_path, **WIDE)
    write_gguf(made.checkpoint, tmp_path / "f16.gguf", precision="f16", context_length=128, name="t")
    quantize_gguf(made.full, tmp_path / "q8.gguf", "q8_0")
    quantize_gguf(made.full, tmp_path / "q4.gguf", "q4_k_m")
    names = ("f32", "f16", "q8", "q4")
    sizes = [(tmp_path / f"{name}.gguf").stat().st_size for name in names]
    assert sizes == sorted(sizes, reverse=True)
    reference = reference_logits(made.checkpoint)
    losses = []
    for name in names:
        engine = open_engine(tmp_path, gguf_variant(f"gguf-{name}", f"{name}.gguf"), threads=1)
        losses.append(max(worst_kl(engine.logits(ids), reference(ids)) for ids in IDS))
        engine.close()
    assert losses == sorted(losses)
    assert losses[1] < F16_KL


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_was_asked_and_planned(kind: GgufKind, wide: Made, tmp_path: Path) -> None:
    import gguf

    quantize_gguf(wide.full, tmp_path / "q.gguf", kind, imatrix=wide.imatrix)
    number = gguf.GGUFReader(tmp_path / "q.gguf").fields["general.file_type"].contents()
    assert gguf.LlamaFileType(number).name == f"MOSTLY_{kind.upper()}"
    assert types_of(tmp_path / "q.gguf") == plan_gguf(wide.checkpoint, kind, imatrix=wide.imatrix)
    assert fallback_note(wide.checkpoint, kind) is None


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_asks_for_a_matrix_where_we_do(kind: GgufKind, wide: Made, tmp_path: Path) -> None:
    if not needs_imatrix(kind):
        run_quantizer(wide.full, tmp_path / "q.gguf", Request(kind, threads=1))
        return
    with pytest.raises(ExportError, match="this quantization requires an imatrix"):
        run_quantizer(wide.full, tmp_path / "q.gguf", Request(kind, threads=1))
    with pytest.raises(ExportError, match=rf"gguf-{kind} is garbage without an importance matrix; .*--calibrate"):
        quantize_gguf(wide.full, tmp_path / "q.gguf", kind)


@pytest.mark.parametrize("kind", ["q4_0", "q5_1", "q4_k_m", "q3_k_m", "iq4_xs", "q2_k", "iq3_xxs"])
def test_the_matrix_lowers_the_error_that_it_weighs(kind: GgufKind, wide: Made, tmp_path: Path) -> None:
    """Sum over rows and columns of (weight - rounded)^2 times the column's mean squared input, in the blocks."""
    import gguf

    full = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(wide.full).tensors}
    errors = []
    plain = Imatrix({n: np.ones_like(v) for n, v in wide.imatrix.sums.items()}, wide.imatrix.counts, "")
    for name, matrix in (("flat", plain), ("weighted", wide.imatrix)):
        quantize_gguf(wide.full, tmp_path / f"{name}.gguf", kind, imatrix=matrix)
        error = 0.0
        for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors:
            if tensor.name.startswith("blk.") and tensor.name in wide.imatrix.sums:
                rounded = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(full[tensor.name].shape)
                error += float(((full[tensor.name] - rounded) ** 2 @ wide.imatrix.sums[tensor.name]).sum())
        errors.append(error)
    assert errors[1] < 0.99 * errors[0]


def test_the_file_says_what_it_was_calibrated_on_but_not_where(wide: Made, tmp_path: Path) -> None:
    import gguf

    quantize_gguf(wide.full, tmp_path / "q.gguf", "q4_k_m", imatrix=wide.imatrix)
    fields = gguf.GGUFReader(tmp_path / "q.gguf").fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith("quantize.")}
    assert found == {
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "train.parquet",
        "quantize.imatrix.entries_count": 15,
        "quantize.imatrix.chunks_count": len(IDS),
    }
    assert b"someone" not in (tmp_path / "q.gguf").read_bytes()


def test_the_same_inputs_give_the_same_bytes(wide: Made, tmp_path: Path) -> None:
    again = compute_imatrix(wide.checkpoint, IDS, dataset=wide.imatrix.dataset)
    for file, matrix, threads in (("a", wide.imatrix, 1), ("b", again, 4)):
        quantize_gguf(wide.full, tmp_path / file, "q3_k_m", imatrix=matrix, threads=threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_types_can_be_named_one_by_one(wide: Made, tmp_path: Path) -> None:
    asked = {r"blk\.0\.attn_(k|v)": "Q8_0", "attn_": "q5_k", "ffn_down": "f16"}
    options: dict[str, Any] = {"tensor_types": asked, "token_embedding": "q4_0", "output": "q8_0"}
    quantize_gguf(wide.full, tmp_path / "q.gguf", "q4_k_s", **options)
    types = types_of(tmp_path / "q.gguf")
    assert types == plan_gguf(wide.checkpoint, "q4_k_s", **options)
    assert (types["token_embd.weight"], types["output.weight"]) == ("q4_0", "q8_0")
    # The first expression that finds a name decides.
    assert (types["blk.0.attn_k.weight"], types["blk.1.attn_k.weight"]) == ("q8_0", "q5_k")
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("f16", "q4_k")
    assert types["blk.0.attn_norm.weight"] == "f32"


def test_a_tied_head_takes_the_type_of_either(narrow: Made) -> None:
    def embedding(**options: str) -> str:
        return plan_gguf(narrow.checkpoint, "q4_0", **options)["token_embd.weight"]

    assert embedding(output="q5_0") == "q5_0"
    assert embedding(output="q5_0", token_embedding="f16") == "f16"


def test_fallbacks_are_told_before(narrow: Made) -> None:
    assert fallback_note(narrow.checkpoint, "f16") is None
    assert fallback_note(narrow.checkpoint, "q8_0") == (
        "gguf-q8_0: 2 of 15 matrices have rows that their type cannot take: "
        "2 in f16 instead of q8_0 (80 wide: blk.*.ffn_down)"
    )
    # A head and embedding of 6 bits becomes q8_0 without a word of llama.cpp's.
    assert fallback_note(narrow.checkpoint, "q4_k_s") == (
        "gguf-q4_k_s: 15 of 15 matrices have rows that their type cannot take: "
        "1 in q8_0 instead of q6_k (64 wide: token_embd); "
        "10 in q5_0 instead of q4_k (64 wide: blk.*.attn_k, blk.*.attn_output, blk.*.attn_q, blk.*.ffn_gate, "
        "blk.*.ffn_up); "
        "2 in f16 instead of q4_k (80 wide: blk.*.ffn_down); "
        "2 in q5_1 instead of q5_k (64 wide: blk.*.attn_v)"
    )


@pytest.mark.parametrize("kind", ["q8_0", "q5_1", "q4_k_m", "q3_k_l", "iq4_xs", "iq2_xs"])
def test_what_was_told_is_what_the_file_holds(kind: GgufKind, narrow: Made, wide: Made, tmp_path: Path) -> None:
    quantize_gguf(narrow.full, tmp_path / "n.gguf", kind, imatrix=narrow.imatrix)
    found = types_of(tmp_path / "n.gguf")
    assert found == plan_gguf(narrow.checkpoint, kind, imatrix=narrow.imatrix)
    told = str(fallback_note(narrow.checkpoint, kind, calibrated=True))
    # The same layers, wide enough; tied, so that the embedding is the head's type there too.
    asked = plan_gguf(wide.checkpoint, kind, imatrix=wide.imatrix)
    asked["token_embd.weight"] = asked.pop("output.weight")
    fell = [(asked[name], became) for name, became in found.items() if asked[name] != became]
    assert f"gguf-{kind}: {len(fell)} of 15 matrices" in told
    for before, after in set(fell):
        assert f"{fell.count((before, after))} in {after} instead of {before} (" in told


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_can_be_planned(name: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_case(name, tmp_path / "student"))
    write_gguf(checkpoint, tmp_path / "f32.gguf", precision="f32", context_length=128, name="t")
    quantize_gguf(tmp_path / "f32.gguf", tmp_path / "q.gguf", "q4_k_m")
    assert types_of(tmp_path / "q.gguf") == plan_gguf(checkpoint, "q4_k_m")


def test_widths_of_other_architectures_are_told_roughly(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", "Olmo2"), any_architecture=True)
    assert fallback_note(checkpoint, "q8_0") is None
    assert str(fallback_note(checkpoint, "q4_k_m")).startswith("gguf-q4_k_m: 15 of 15 matrices have rows that are no")
    with pytest.raises(ExportError, match="Olmo2ForCausalLM has types only once it is converted"):
        plan_gguf(checkpoint, "q4_k_m")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tensor_types": {"attn_(k": "q8_0"}}, r"tensor type 'attn_\(k': Mismatched '\(' and '\)'.*; mend the"),
        ({"tensor_types": {"(?<=a)ttn": "q8_0"}}, r"tensor type '\(\?<=a\)ttn': .*; mend the regular expression"),
        ({"tensor_types": {"attn_w": "q8_0"}}, r"'attn_w' fits no matrix; their names are blk\.\*\.attn_k\.weight, "),
        ({"tensor_types": {"attn_norm": "q8_0"}}, "'attn_norm' fits no matrix"),
        ({"tensor_types": {"attn_k": "q4_k_m"}}, "no tensor type 'q4_k_m'; did you mean q4_k?"),
        ({"output": "int4"}, "no tensor type 'int4'"),
        ({"token_embedding": "q4_k"}, "q4_k cannot store the embedding, whose rows of 64 are no multiple of 256"),
        ({"output": "q6_k"}, "q6_k cannot store the head, whose rows of 64 are no multiple of 256"),
        ({"tensor_types": {"blk": "iq4_xs"}, "kind": "f16"}, "f16 is no quantized GGUF kind; choose one of q8_0"),
    ],
)
def test_wrong_requests_are_refused_before(options: dict[str, Any], reason: str, narrow: Made, tmp_path: Path) -> None:
    options = {"kind": "q4_0"} | options
    with pytest.raises(ExportError, match=reason) as caught:
        quantize_gguf(narrow.full, tmp_path / "q.gguf", **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=reason):
        plan_gguf(narrow.checkpoint, **options)
    assert list(tmp_path.iterdir()) == []


def test_types_that_would_end_the_process_are_refused(wide: Made, tmp_path: Path) -> None:
    blocks = {name: values for name, values in wide.imatrix.sums.items() if name.startswith("blk.")}
    partial = Imatrix(blocks, wide.imatrix.counts, "")
    for options in ({}, {"imatrix": partial}):
        with pytest.raises(ExportError, match=r"output\.weight would be iq2_xs, which asks for an importance matrix"):
            quantize_gguf(wide.full, tmp_path / "q.gguf", "q4_0", output="iq2_xs", **options)
    quantize_gguf(wide.full, tmp_path / "q.gguf", "q4_0", output="iq2_xs", imatrix=wide.imatrix)
    with pytest.raises(ExportError, match=r"blk\.0\.attn_k\.weight would be iq3_xxs"):
        quantize_gguf(wide.full, tmp_path / "q.gguf", "q4_0", tensor_types={"attn_k": "iq3_xxs"})


def test_a_matrix_of_another_model_is_refused(wide: Made, narrow: Made, tmp_path: Path) -> None:
    sums = wide.imatrix.sums
    deeper = sums | {"blk.2.attn_k.weight": sums["blk.0.attn_k.weight"]}
    shallower = {name: values for name, values in sums.items() if not name.startswith("blk.1.")}
    for entries, reason in (
        (narrow.imatrix.sums, r"has 64 values for blk\.0\.attn_k\.weight, whose rows have 256"),
        (deeper, r"has an entry blk\.2\.attn_k\.weight, which the model has not"),
        (shallower, r"has no entry for blk\.1\.attn_k\.weight and 6 of 14 others"),
    ):
        matrix = Imatrix(entries, dict.fromkeys(entries, 9), "")
        with pytest.raises(ExportError, match=f"the importance matrix {reason}; compute it anew"):
            quantize_gguf(wide.full, tmp_path / "q.gguf", "q4_k_m", imatrix=matrix)
    assert list(tmp_path.iterdir()) == []


def test_quantizing_what_is_no_gguf_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(
        ExportError, match=r"could not quantize broken\.gguf to q8_0 \(.*failed to load model"
    ) as caught:
        quantize_gguf(tmp_path / "broken.gguf", tmp_path / "out.gguf", "q8_0")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()
    assert capfd.readouterr().err == ""


def test_a_full_disk_leaves_what_was_there(wide: Made, tmp_path: Path) -> None:
    """A limit on file sizes, in a process of its own, fails a write as a full disk does."""
    pytest.importorskip("resource", reason="needs a POSIX system")
    (tmp_path / "q.gguf").write_bytes(b"from before")
    program = (
        "import resource, sys\n"
        "from pocketstill_export.gguf.quantize import quantize_gguf\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    quantize_gguf(sys.argv[1], sys.argv[2], 'q8_0')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(wide.full), str(tmp_path / "q.gguf")], capture_output=True, text=True
    )
    assert done.stdout.startswith("ExportError llama.cpp could not quantize f32.gguf to q8_0 (")
    assert "free some space" in done.stdout and done.stdout.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"q.gguf"}
    assert (tmp_path / "q.gguf").read_bytes() == b"from before"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_llama_quantize(kind: GgufKind, wide: Made, tmp_path: Path) -> None:
    programs = os.environ.get("POCKETSTILL_LLAMA_BIN")
    if not programs:
        pytest.skip("set POCKETSTILL_LLAMA_BIN to the folder of llama.cpp's programs")
    program = Path(programs).resolve() / "llama-quantize"
    matrix = Imatrix(wide.imatrix.sums, wide.imatrix.counts, "train.parquet", wide.imatrix.chunks, 54)
    write_imatrix(matrix, tmp_path / IMATRIX_FILE)
    quantize_gguf(
        wide.full, tmp_path / "ours.gguf", kind, imatrix=matrix, tensor_types={"attn_v": "q5_0"}, output="q8_0"
    )
    options = ["--imatrix", IMATRIX_FILE, "--tensor-type", "attn_v=q5_0", "--output-tensor-type", "q8_0"]
    subprocess.run(
        [str(program), *options, str(wide.full), "theirs.gguf", kind],
        cwd=tmp_path,
        env=os.environ | {"LD_LIBRARY_PATH": str(program.parent)},
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
