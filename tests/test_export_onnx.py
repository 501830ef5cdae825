"""ONNX files hold the checkpoint's logits and are what every runtime of the same folder expects."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

import numpy as np
import onnx
from export_students import IDS, make_student, worst_kl

from pocketstill.bundle import Variant
from pocketstill.engines import open_engine
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.companions import write_companions
from pocketstill_export.errors import ExportError
from pocketstill_export.onnx.build import build_onnx, onnx_note
from pocketstill_export.onnx.nbits import NbitsPlan, round_model
from pocketstill_export.parity.logits import EXACT_KL, reference_logits
from pocketstill_export.variants import parse_variant, parse_variants

GGUF = "take gguf ones"
NO_GPTQ = importlib.util.find_spec("gptqmodel") is None
# A wrong zero point or a matrix in another's place costs more than 2 on these students; their logits are far apart.
MOST_KL = {"fp32": EXACT_KL, "fp16": 1e-3, "int8": 0.05, "int4": 1.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + 0.3 * i for i in range(8)],
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral, window": ("Mistral", {"sliding_window": 16, "tie_word_embeddings": False}),
    "qwen2, yarn, untied, odd blocks": (
        "Qwen2",
        {
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
            | {"original_max_position_embeddings": 32},
            "tie_word_embeddings": False,
            "intermediate_size": 96,
        },
    ),
    "qwen3, window in one layer": ("Qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "gemma3, scaled, width 80": (
        "Gemma3",
        {
            "hidden_size": 80,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": GEMMA,
        },
    ),
    "phi3, window": ("Phi3", {"sliding_window": 20, "tie_word_embeddings": False}),
    "phi3, longrope": ("Phi3", {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE}),
}


def build(student: Path, out: Path, names: Sequence[str], *, context_length: int = 128, **options: Any) -> None:
    checkpoint = read_checkpoint(student)
    out.mkdir()
    specs = parse_variants(names)
    config = build_onnx(checkpoint, out, specs, context_length=context_length, **options)
    write_companions(checkpoint, out, context_length=context_length, generation={}, onnx=specs, genai_config=config)


def kl_of(student: Path, out: Path, names: Sequence[str]) -> dict[str, float]:
    """The worst KL of each variant over the ids; what it decodes must be what one pass says."""
    reference = reference_logits(read_checkpoint(student))
    worst = {}
    for name in names:
        file = parse_variant(name).file
        engine = open_engine(out, Variant(name, "onnx", file, (file, file + "_data"), 0), threads=1)
        try:
            worst[name] = max(worst_kl(engine.logits(ids), reference(ids)) for ids in IDS)
            new = list(engine.generate(IDS[0], max_new_tokens=24, stop_ids=()))
            rows = engine.logits(IDS[0] + new)[len(IDS[0]) - 1 : -1]
            assert [float(row[token]) for row, token in zip(rows, new, strict=True)] == pytest.approx(
                [float(row.max()) for row in rows], abs=0.2
            )
        finally:
            engine.close()
    return worst


def graph_of(out: Path, name: str) -> Any:
    return onnx.load(out / parse_variant(name).file, load_external_data=False).graph


def bits_of(graph: Any) -> dict[str, int]:
    """Bits of each quantized node, without the ending that says so."""
    nodes = [n for n in graph.node if n.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    bits = {n.name: next(a.i for a in n.attribute if a.name == "bits") for n in nodes}
    return {name.rsplit("_Q", 1)[0]: value for name, value in bits.items()}


@pytest.mark.parametrize("name", STUDENTS)
def test_architectures(name: str, tmp_path: Path) -> None:
    architecture, config = STUDENTS[name]
    student = make_student(tmp_path / "student", architecture, **config)
    names = [f"onnx-{precision}" for precision in MOST_KL]
    build(student, tmp_path / "out", names)
    for variant, worst in kl_of(student, tmp_path / "out", names).items():
        assert worst < MOST_KL[variant.removeprefix("onnx-")], variant


def test_longrope_in_a_context_that_needs_no_long_table(tmp_path: Path) -> None:
    """The scale of the rotation is of the model's positions, however few are used."""
    student = make_student(tmp_path / "student", "Phi3", original_max_position_embeddings=64, rope_parameters=LONGROPE)
    build(student, tmp_path / "out", ["onnx-fp32"], context_length=64)
    assert kl_of(student, tmp_path / "out", ["onnx-fp32"])["onnx-fp32"] < EXACT_KL


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A tied Llama with a projection as wide as the vocabulary, in every method, and blocks that do not divide it."""
    folder = tmp_path_factory.mktemp("ways")
    rows = read_checkpoint(make_student(folder / "any")).config.vocab_size
    student = make_student(folder / "student", intermediate_size=rows)
    names = ["onnx-int4", "onnx-int4-sym-b16", "onnx-int4-kmixed-b64", "onnx-int4-rtn-b32", "onnx-int4-rtn-sym-b128"]
    names += ["onnx-int4-hqq-b32", "onnx-int4-kquant-b256", "onnx-int8", "onnx-fp32"]
    build(student, folder / "out", names, context_length=100)
    return student, folder / "out", names


def test_every_method_block_and_symmetry(ways: tuple[Path, Path, list[str]]) -> None:
    student, out, names = ways
    worst = kl_of(student, out, names)
    assert worst["onnx-fp32"] < EXACT_KL
    assert worst["onnx-int8"] < 0.05
    assert all(kl < 1.0 for kl in worst.values()), worst
    assert worst["onnx-int4"] < worst["onnx-int4-rtn-b32"]


def test_every_matrix_is_rounded(ways: tuple[Path, Path, list[str]]) -> None:
    """Attention, down projection, head and embedding keep 8 bits in the default; nothing large stays in fp32."""
    _, out, names = ways
    bits = bits_of(graph_of(out, "onnx-int4"))
    eight = {name for name, value in bits.items() if value == 8}
    assert {name for name in bits if not name.endswith(("gate_proj/MatMul", "up_proj/MatMul"))} == eight
    assert len(bits) == 2 * 5 + 2
    assert {*bits_of(graph_of(out, "onnx-int4-rtn-b32")).values()} == {4, 8}
    assert {*bits_of(graph_of(out, "onnx-int8")).values()} == {8}
    sizes = {name: (out / (parse_variant(name).file + "_data")).stat().st_size for name in names}
    assert sizes["onnx-int4-rtn-b32"] < sizes["onnx-int4"] < sizes["onnx-int8"] < 0.36 * sizes["onnx-fp32"]


def test_names_that_the_runtimes_look_for(ways: tuple[Path, Path, list[str]]) -> None:
    """Also what optimum-onnx 0.1's ORTModelForCausalLM wants: these inputs and outputs, and caches of known width."""
    _, out, names = ways
    layers = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    for name in names:
        path = out / parse_variant(name).file
        graph = graph_of(out, name)
        locations = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
        assert locations == {path.name + "_data"}
        caches = {f"past_key_values.{x}" for x in layers}
        assert {v.name for v in graph.input} == {"input_ids", "attention_mask"} | caches
        assert {v.name for v in graph.output} == {"logits"} | {f"present.{x}" for x in layers}
        for value in (v for v in (*graph.input, *graph.output) if v.name.endswith(("key", "value"))):
            shape = value.type.tensor_type.shape.dim
            assert [shape[1].dim_value, shape[3].dim_value] == [2, 16]
    files = {parse_variant(name).file for name in names}
    assert {f"onnx/{p.name}" for p in (out / "onnx").iterdir()} == files | {f + "_data" for f in files}


def test_companions_name_the_files(ways: tuple[Path, Path, list[str]]) -> None:
    _, out, names = ways
    config = json.loads((out / "config.json").read_text())["transformers.js_config"]
    assert config["dtype"] == "q4"
    assert config["use_external_data_format"] == {Path(parse_variant(name).file).name: 1 for name in names}
    decoder = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["filename"] == "onnx/model_q4.onnx"


def test_rotary_tables_are_no_longer_than_the_context(ways: tuple[Path, Path, list[str]]) -> None:
    for name in ways[2]:
        tables = [t for t in graph_of(ways[1], name).initializer if t.name in ("cos_cache", "sin_cache")]
        assert [t.dims[0] for t in tables] == [100, 100]


def test_without_int4_the_smallest_file_is_the_default(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    specs = parse_variants(["onnx-fp32", "onnx-int8"])
    write_companions(checkpoint, tmp_path, context_length=60, generation={}, onnx=specs, genai_config=None)
    config = json.loads((tmp_path / "config.json").read_text())["transformers.js_config"]
    assert config == {"dtype": "int8", "use_external_data_format": {"model.onnx": 1, "model_int8.onnx": 1}}


def test_nodes_with_eight_bits_can_be_named(tmp_path: Path) -> None:
    student = make_student(tmp_path / "student", tie_word_embeddings=False)
    patterns = ["/lm_head/MatMul", "*/layers.1/mlp/*"]
    build(student, tmp_path / "out", ["onnx-int4-sym"], eight_bit=patterns)
    bits = bits_of(graph_of(tmp_path / "out", "onnx-int4-sym"))
    eight = {f"/model/layers.1/mlp/{part}_proj/MatMul" for part in ("gate", "up", "down")} | {"/lm_head/MatMul"}
    assert {name for name, value in bits.items() if value == 8} == eight
    assert bits["/model/embed_tokens/GatherBlockQuantized"] == 4
    assert kl_of(student, tmp_path / "out", ["onnx-int4-sym"])["onnx-int4-sym"] < 1.0


def test_a_pattern_that_names_no_node_is_refused(ways: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    plan = NbitsPlan("rtn", 32, True, ["*/nothing"])
    with pytest.raises(ExportError, match=r"no matrix is named '\*/nothing'"):
        round_model(ways[1] / "onnx/model.onnx", tmp_path / "model.onnx", 16, plan)


@pytest.mark.parametrize(
    ("architecture", "config", "variant", "message"),
    [
        ("GPT2", {}, "onnx-fp32", r"no GPT2LMHeadModel.*" + GGUF),
        ("Llama", {}, "onnx-int4-hqq-sym", "onnx-int4-kquant-sym"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "onnx-fp32",
            "'dynamic'.*" + GGUF,
        ),
        ("Llama", {"head_dim": 8}, "onnx-int4", "by 16 numbers, not 8.*" + GGUF),
        pytest.param(
            "Llama", {}, "onnx-int4-gptq", r"gptqmodel: pip install 'pocketstill\[gptq\]'",
            marks=pytest.mark.skipif(not NO_GPTQ, reason="the extra gptq is installed"),
        ),
    ],
)  # fmt: skip
def test_refused_before_any_work(
    architecture: str, config: dict[str, Any], variant: str, message: str, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", architecture, **config))
    with pytest.raises(ExportError, match=message) as raised:
        onnx_note(checkpoint, parse_variant(variant))
    assert "\n" not in str(raised.value)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=message):
        build_onnx(checkpoint, tmp_path / "out", [parse_variant(variant)], context_length=64)
    assert not list((tmp_path / "out").iterdir())


def test_padded_rows_and_slow_methods_are_said_before(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student", intermediate_size=96))
    assert onnx_note(checkpoint, parse_variant("onnx-int4")) is None
    assert "rows of 96 weights" in (onnx_note(checkpoint, parse_variant("onnx-int4-b64")) or "")
    assert "slow" in (onnx_note(checkpoint, parse_variant("onnx-int4-hqq")) or "")


@pytest.mark.skipif(NO_GPTQ, reason="needs the extra gptq")
@pytest.mark.parametrize("architecture", ["Llama", "Phi3", "Qwen3"])
def test_gptq_beats_rounding_to_nearest_on_what_it_was_calibrated_on(architecture: str, tmp_path: Path) -> None:
    """The fused matrices of each architecture in their places; both symmetries."""
    student = make_student(tmp_path / "student", architecture)
    names = [f"onnx-int4-{way}" for way in ("rtn", "rtn-sym", "gptq", "gptq-sym")]
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 300, 64).tolist() for _ in range(64)]
    build(student, tmp_path / "out", names, calibration=texts)
    reference = reference_logits(read_checkpoint(student))
    mean = {}
    for name in names:
        file = parse_variant(name).file
        engine = open_engine(tmp_path / "out", Variant(name, "onnx", file, (file, file + "_data"), 0), threads=1)
        rows = [(engine.logits(ids), reference(ids)) for ids in texts[:16]]
        mean[name] = np.mean(
            [worst_kl(a[None], b[None]) for found, known in rows for a, b in zip(found, known, strict=True)]
        )
        engine.close()
    assert mean["onnx-int4-gptq"] < mean["onnx-int4-rtn"]
    assert mean["onnx-int4-gptq-sym"] < mean["onnx-int4-rtn-sym"]
    with pytest.raises(ExportError, match="--calibrate"):
        build_onnx(read_checkpoint(student), tmp_path / "out", [parse_variant("onnx-int4-gptq")], context_length=64)
    wide = read_checkpoint(make_student(tmp_path / "wide", intermediate_size=80))
    with pytest.raises(ExportError, match="take -b16"):
        onnx_note(wide, parse_variant("onnx-int4-gptq"))
