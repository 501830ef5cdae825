"""Our GGUF is the one that llama.cpp's own converter writes, tensor by tensor and key by key."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")
pytest.importorskip("gguf", reason="needs the workshop extra")

from export_students import (
    IDS,
    LLAMA3_ROPE,
    ROPE,
    SHARED_TOKENIZERS,
    YARN,
    gguf_variant,
    make_student,
    sentencepiece_tokenizer,
    worst_kl,
)

from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.converter import convert_by_llama_cpp
from pocketstill_export.gguf.write import GgufPrecision, write_gguf

CONVERTER = Path(__file__).parents[1] / ".peers" / "llama.cpp" / "convert_hf_to_gguf.py"
pytestmark = [
    pytest.mark.skipif(not CONVERTER.is_file(), reason="run `make peers`"),
    pytest.mark.skipif(not SHARED_TOKENIZERS.is_dir(), reason="the real tokenizers are not on this machine"),
]

# The keys in which our file may be other than the converter's, and why. Everything else is equal.
EXCEPTIONS = {
    r"general\.(name|basename|finetune|version|organization)": "names; the converter makes them of the folder's name",
    r"tokenizer\.ggml\.add_(bos|eos)_token": (
        "where the post-processor adds nothing the converter says nothing, and llama.cpp takes what is usual for the "
        "pre-tokenizer's name; ours says what tokenizer.json does"
    ),
    r"tokenizer\.ggml\.add_sep_token": "how rerankers join two texts; ours leaves it at llama.cpp's default, the same",
}
LONGROPE = ROPE | {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 5.0, 7.0],
    "original_max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Case:
    """A student, its tokenizer, and keys of config.json that the converter wants and transformers 5 leaves out."""

    architecture: str
    tokenizer: str
    config: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case("Llama", "gpt-2"),
    "llama, phi-3's tokenizer, untied, biases": Case(
        "Llama", "phi-3", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
    ),
    "llama 3.1 rope, wide heads": Case("Llama", "gpt-2", {"rope_parameters": LLAMA3_ROPE, "head_dim": 16}),
    "llama linear rope": Case("Llama", "gpt-2", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}),
    "mistral": Case("Mistral", "mistral", {"tie_word_embeddings": False, "sliding_window": 128}),
    "qwen2": Case("Qwen2", "qwen2"),
    "qwen2 yarn, untied": Case("Qwen2", "qwen2", {"rope_parameters": YARN, "tie_word_embeddings": False}),
    "qwen3": Case("Qwen3", "gpt-2"),
    "gemma3": Case("Gemma3", "gemma"),
    "gemma3 untied, capped": Case("Gemma3", "gemma", {"tie_word_embeddings": False, "final_logit_softcapping": 5.0}),
    "phi3": Case("Phi3", "phi-3"),
    "phi3 untied, window": Case("Phi3", "phi-3", {"tie_word_embeddings": False, "sliding_window": 128}),
    "phi3 longrope": Case(
        "Phi3",
        "phi-3",
        {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, "original_max_position_embeddings": 256},
    ),
    "gpt2": Case("GPT2", "gpt-2", extra={"n_ctx": 128}),
    "gpt2 untied": Case("GPT2", "gpt-2", {"tie_word_embeddings": False}, extra={"n_ctx": 128}),
}
USUAL = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "gpt2")
MATRIX = [
    pytest.param(name, precision, marks=[] if name in USUAL and precision == "f16" else [pytest.mark.slow])
    for name in CASES
    for precision in ("f16", "f32", "bf16")
    if precision != "bf16" or name in USUAL
]
# Runs the script once for each list of arguments, so that it imports torch and transformers once.
DRIVER = """
import json, runpy, sys, traceback
script, *jobs = json.loads(sys.argv[1])
for job in jobs:
    sys.argv = [script, *job]
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException as error:
        traceback.print_exc()
"""


class Students:
    """The checkpoints, each made once, and the converter's file of each, all written by one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._converted: set[tuple[str, str]] = set()

    def checkpoint(self, name: str) -> Checkpoint:
        case, folder = CASES[name], self.folder / name.replace(" ", "-")
        if not folder.is_dir():
            source = SHARED_TOKENIZERS / case.tokenizer
            if case.tokenizer not in ("gpt-2", "qwen2"):
                source = self.folder / f"tokenizer-{case.tokenizer}"
                if not source.is_dir():
                    sentencepiece_tokenizer(source, like=case.tokenizer)
            eos = {"gpt-2": 50256, "qwen2": 151643, "phi-3": 32000}.get(case.tokenizer, 2)
            size = {"hidden_size": 32, "intermediate_size": 64, "eos_token_id": eos, "pad_token_id": eos}
            make_student(folder, case.architecture, tokenizer=source, **(size | case.config))
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | case.extra))
        return read_checkpoint(folder)

    def converted(self, name: str, precision: str, wanted: list[tuple[str, str]]) -> Path:
        """The converter's file; at the first call it makes all that are `wanted`."""
        if (name, precision) not in self._converted:
            jobs = []
            for other, kind in wanted:
                folder = self.checkpoint(other).folder
                target = str(self._path(other, kind))
                jobs.append([str(folder), "--outfile", target, "--outtype", kind, "--model-name", "tiny"])
            paths = os.pathsep.join([str(CONVERTER.parent / "gguf-py"), str(CONVERTER.parent)])
            arguments = json.dumps([str(CONVERTER), *jobs])
            environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
            run = subprocess.run(
                [sys.executable, "-c", DRIVER, arguments], env=environment, capture_output=True, text=True, check=False
            )
            self._log = run.stderr
            self._converted |= set(wanted)
        path = self._path(name, precision)
        assert path.is_file(), self._log[-3000:]
        return path

    def _path(self, name: str, precision: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}-{precision}.gguf"


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Students:
    return Students(tmp_path_factory.mktemp("students"))


@pytest.fixture(scope="module")
def wanted(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """Which cases this run of the tests asks for."""
    items = [item for item in request.session.items if item.fspath == request.node.fspath]
    return [
        (item.callspec.params["name"], item.callspec.params["precision"])
        for item in items
        if getattr(item, "callspec", None) and "precision" in item.callspec.params
    ]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the keys of a file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    keys = {key: entry.contents() for key, entry in reader.fields.items() if not key.startswith("GGUF.")}
    return {tensor.name: tensor for tensor in reader.tensors}, keys


@pytest.mark.parametrize(("name", "precision"), MATRIX)
def test_our_file_is_the_converters(
    name: str, precision: GgufPrecision, students: Students, wanted: list[tuple[str, str]], tmp_path: Path
) -> None:
    checkpoint = students.checkpoint(name)
    longest = 256 if "longrope" in name else checkpoint.config.max_position_embeddings
    write_gguf(checkpoint, tmp_path / "ours.gguf", precision=precision, context_length=longest, name="tiny")
    expected, wanted_keys = read(students.converted(name, precision, wanted))
    found, found_keys = read(tmp_path / "ours.gguf")
    assert set(found) == set(expected)
    for tensor in expected.values():
        other = found[tensor.name]
        assert (tensor.tensor_type, list(tensor.shape)) == (other.tensor_type, list(other.shape)), tensor.name
        assert np.array_equal(tensor.data.view(np.uint8), other.data.view(np.uint8)), tensor.name
    different = {
        key: (wanted_keys.get(key), found_keys.get(key))
        for key in wanted_keys | found_keys
        if wanted_keys.get(key) != found_keys.get(key)
    }
    if "longrope" in name:
        # Ours is what was asked for: beyond it llama.cpp would take the long factors for every prompt.
        assert different.pop("phi3.context_length") == (1024, 256)
    assert {key: pair for key, pair in different.items() if not any(re.fullmatch(e, key) for e in EXCEPTIONS)} == {}


def test_the_converter_that_the_user_names(tmp_path: Path) -> None:
    """An architecture that is not written here: its logits through llama.cpp are those of transformers."""
    from pocketstill.engines import open_engine
    from pocketstill_export.parity.logits import EXACT_KL, reference_logits

    pytest.importorskip("llama_cpp", reason="needs the gguf extra")
    config = {"hidden_size": 32, "intermediate_size": 64, "tie_word_embeddings": False}
    folder = make_student(tmp_path / "student", "Olmo2", tokenizer=SHARED_TOKENIZERS / "gpt-2", **config)
    checkpoint = read_checkpoint(folder, any_architecture=True)
    convert_by_llama_cpp(CONVERTER, checkpoint, tmp_path / "m.gguf", precision="f32", name="tiny")
    engine = open_engine(tmp_path, gguf_variant("gguf-f32", "m.gguf"), threads=1)
    try:
        reference = reference_logits(checkpoint)
        assert max(worst_kl(engine.logits(ids), reference(ids)) for ids in IDS) < EXACT_KL
    finally:
        engine.close()


def test_a_converter_that_fails_is_quoted_in_one_line(tmp_path: Path) -> None:
    """It refuses tokenizers that it does not know by hash, such as our students' own."""
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    (tmp_path / "m.gguf").write_bytes(b"of an earlier run")
    with pytest.raises(ExportError, match="BPE pre-tokenizer was not recognized") as caught:
        convert_by_llama_cpp(CONVERTER, checkpoint, tmp_path / "m.gguf", precision="f16", name="tiny")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.gguf").exists()


def test_a_converter_that_is_no_converter(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_student(tmp_path / "student"))
    (script := tmp_path / "convert.py").write_text("print('hello')")
    for path, reason in ((tmp_path / "none.py", "is not there"), (script, r"wrote no m\.gguf")):
        with pytest.raises(ExportError, match=reason):
            convert_by_llama_cpp(path, checkpoint, tmp_path / "m.gguf", precision="f16", name="tiny")
