"""Real faults in a bundle: each must fail parity, and its likely cause be named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from conftest import CONTEXT, PARITY_TEXTS
from export_students import gguf_variant, make_student

from pocketstill.bundle import Bundle
from pocketstill.engines import open_engine
from pocketstill.engines.gguf import GgufEngine
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.gguf import write as gguf_module
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.parity.generation import check_decode, check_stops, continue_by, continue_texts
from pocketstill_export.parity.logits import (
    compare_logits,
    load_reference,
    log_softmax,
)
from pocketstill_export.parity.measure import Parity, measure_parity
from pocketstill_export.parity.text import check_stop_ids, check_template


def measured(checkpoint: Path, folder: Path, index: Path, only: str | None = None) -> Parity:
    variants = [v for v in Bundle.load(index).variants if only in (None, v.name)]
    return measure_parity(read_checkpoint(checkpoint), folder, variants, PARITY_TEXTS, context_length=CONTEXT)


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def onnx_weights(folder: Path, name: str) -> np.memmap:
    """An initializer's numbers in the file beside the fp32 graph, to be changed in place."""
    import onnx

    graph = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph
    tensor = next(t for t in graph.initializer if t.name == name)
    where = {entry.key: entry.value for entry in tensor.external_data}
    file = folder / "onnx" / where["location"]
    return np.memmap(file, np.float32, "r+", int(where.get("offset", 0)), tuple(tensor.dims))


def test_a_transposed_matrix_is_named(tiny_checkpoint: Path, tiny_bundle: Path, copied: Path) -> None:
    weights = onnx_weights(copied, "model.layers.0.attn.o_proj.MatMul.weight")
    weights[:] = weights.T.copy()
    weights.flush()
    failures = measured(tiny_checkpoint, copied, tiny_bundle, "onnx-fp32").failures
    logits = next(failure for failure in failures if "logits differ" in failure)
    assert "off from the first token on" in logits
    assert "transposed" in logits
    assert any("greedy continuations" in failure for failure in failures)


def test_a_wrong_rope_table_is_named(tiny_checkpoint: Path, tiny_bundle: Path, copied: Path) -> None:
    for name in ("cos_cache", "sin_cache"):
        weights = onnx_weights(copied, name)
        weights[:] = weights[:, ::-1].copy()
        weights.flush()
    failures = measured(tiny_checkpoint, copied, tiny_bundle, "onnx-fp32").failures
    assert "first token is right and later ones are off" in failures[0]
    assert "rope base" in failures[0]


def test_a_damaged_row_of_the_embedding_is_named(tiny_checkpoint: Path, tiny_bundle: Path, copied: Path) -> None:
    weights = onnx_weights(copied, "model.embed_tokens.weight")
    coin = read_checkpoint(tiny_checkpoint).tokenizer["model"]["vocab"]["Ġcoin"]
    weights[coin] = weights[coin][::-1].copy()
    weights.flush()
    failures = measured(tiny_checkpoint, copied, tiny_bundle, "onnx-fp32").failures
    assert f"only what follows token {coin} is off: its row of the embedding" in failures[0]


def gguf_field(path: Path, key: str) -> Any:
    """The numbers of a metadata value, to be changed in place, as `gguf_set_metadata` does."""
    import gguf

    field = gguf.GGUFReader(path, "r+").fields[key]
    return field.parts[field.data[0]]


def test_a_wrong_rope_base_in_gguf_is_named(tiny_checkpoint: Path, tiny_bundle: Path, copied: Path) -> None:
    gguf_field(copied / "model-f16.gguf", "llama.rope.freq_base")[0] = 100.0
    failures = measured(tiny_checkpoint, copied, tiny_bundle, "gguf-f16").failures
    assert "the rope base" in failures[0]


def test_unpermuted_rows_of_q_and_k_are_named(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gguf_module, "_permuted", lambda array, heads: array)
    check = written(read_checkpoint(tiny_checkpoint), tmp_path, "gguf-f16")
    assert not check.passed
    assert "order of the rows of q and k" in str(check.cause)


def written(checkpoint: Checkpoint, folder: Path, called: str, reference: Checkpoint | None = None) -> Any:
    """The checkpoint as an f32 GGUF, judged as the variant `called`, over texts long enough for a mean."""
    write_gguf(checkpoint, folder / "x.gguf", precision="f32", context_length=128, name="x")
    engine = open_engine(folder, gguf_variant(called, "x.gguf"), threads=1)
    ids = [[(7 * i + n) % 300 for i in range(60)] for n in range(8)]
    model = load_reference(reference or checkpoint)
    try:
        expected = [log_softmax(model.logits(sequence)) for sequence in ids]
        return compare_logits(called, engine.logits, ids, expected, config=(reference or checkpoint).config)
    finally:
        engine.close()


def test_a_broken_quantization_is_told_from_a_coarse_one(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from pocketstill_export.gguf.quantize import quantize_gguf

    checkpoint = read_checkpoint(tiny_checkpoint)
    sound = written(checkpoint, tmp_path, "gguf-q4_0")
    assert sound.passed
    assert sound.mean_bound is not None
    quantize_gguf(tmp_path / "x.gguf", tmp_path / "q.gguf", "q4_k_m")
    monkeypatch.setattr(gguf_module, "_permuted", lambda array, heads: array)
    broken = written(checkpoint, tmp_path, "gguf-q4_0")
    assert not broken.passed
    assert "mean KL" in str(broken.difference)


def test_a_lost_sliding_window_is_named(tmp_path: Path) -> None:
    windowed = make_student(tmp_path / "windowed", "Mistral", sliding_window=24)
    shutil.copytree(windowed, tmp_path / "whole")
    path = tmp_path / "whole" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": None}))
    check = written(
        read_checkpoint(tmp_path / "whole"), tmp_path, "gguf-f32", reference=read_checkpoint(tmp_path / "windowed")
    )
    assert not check.passed
    assert "only positions from 24 on differ, and sliding_window is 24" in str(check.cause)


def test_eight_bits_called_sixteen_are_named(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    engine = open_engine(tiny_bundle, gguf_variant("gguf-q8_0", "model-q8_0.gguf"), threads=1)
    ids = [[(7 * i + n) % 300 for i in range(60)] for n in range(8)]
    model = load_reference(checkpoint)
    try:
        check = compare_logits("gguf-f16", engine.logits, ids, [log_softmax(model.logits(s)) for s in ids])
    finally:
        engine.close()
    assert not check.passed
    assert str(check.cause).startswith("rounding")


def test_a_stop_id_that_the_bundle_lacks_is_named(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    checkpoint = replace(read_checkpoint(tiny_checkpoint), stop_ids=(0, 20))
    checks = check_stop_ids(checkpoint, tiny_bundle, Bundle.load(tiny_bundle).variants)
    assert {check.variant: check.difference for check in checks if not check.passed} == {
        "generation_config.json": "[0] instead of [0, 20]",
        "genai_config.json": "[0] instead of [0, 20]",
        **{f"gguf-{kind}": "llama.cpp does not stop at [20]" for kind in ("f16", "q8_0", "q4_k_m")},
    }
    assert all(check.cause for check in checks if not check.passed)


def test_another_template_in_gguf_is_named(tiny_checkpoint: Path, tiny_bundle: Path, copied: Path) -> None:
    text = gguf_field(copied / "model-f16.gguf", "tokenizer.chat_template")
    text[2] = ord("-")
    failures = measured(tiny_checkpoint, copied, tiny_bundle, "gguf-f16").failures
    assert failures[0].startswith("gguf-f16: template differ: tokenizer.chat_template: '{%-for message")


def test_an_added_token_that_onnx_lost_is_named(tiny_checkpoint: Path, tiny_bundle: Path, copied: Path) -> None:
    path = copied / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|user|>"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    shipped, failure = measured(tiny_checkpoint, copied, tiny_bundle, "onnx-fp32").failures
    assert shipped == failure.replace("onnx-fp32", "tokenizer.json")
    assert failure.startswith(
        "onnx-fp32: token ids differ: '<|user|>The coin is heads up.<|end|><|assistant|>' at token 0:"
    )
    assert "('<|user|>' 'The' 'Ġcoin')" in failure
    assert "the added token '<|user|>' was read as plain text" in failure


TEMPLATES = {
    "refuses roles": "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.content }}{% endfor %}",
    "tools": "{{ bos_token }}{% if tools is not none %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{{ m.role }}:{% if m.content is string %}{{ m.content | trim }}{% endif %}{% if m.tool_calls is defined %}"
    "{% for c in m.tool_calls %}{{ c.function | tojson(indent=1) }}{% endfor %}{% endif %}\n{% endfor %}",
    "concatenates": "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_all_kinds_render_alike_or_are_refused_alike(
    name: str, tiny_checkpoint: Path, copied: Path
) -> None:
    checkpoint = replace(read_checkpoint(tiny_checkpoint), template=TEMPLATES[name])
    put_template(copied, TEMPLATES[name])
    (check,) = check_template(checkpoint, copied)
    assert check.passed, check.difference
    assert check.compared >= 30


def put_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_bytes(template.encode())
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"chat_template": template}))


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (lambda t: t.replace("role }}|>", "role }}|> "), "only blanks differ"),
        (lambda t: "<s>" + t, "the beginning differs"),
        (lambda t: t.replace("<|assistant|>", ""), "the end differs"),
        (lambda t: t.replace("role }}|>", "role }}|>\n\n["), "the template is another one"),
        (lambda t: "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + t, "the bundle refuses"),
    ],
)
def test_another_template_in_the_bundle_is_named(
    edit: Callable[[str], str], cause: str, tiny_checkpoint: Path, copied: Path
) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    put_template(copied, edit(checkpoint.template))
    (check,) = check_template(checkpoint, copied)
    assert not check.passed
    assert cause in str(check.cause)


class Forgetful(GgufEngine):
    """Its cache is lost: every step sees the token before it, and no more."""

    def generate(self, ids: Sequence[int], *, max_new_tokens: int, **_: Any) -> Iterator[int]:
        last = ids[-1]
        for _step in range(max_new_tokens):
            last = int(self.logits([last])[0].argmax())
            yield last


class Deaf(GgufEngine):
    """It heeds no stop id."""

    def generate(self, ids: Sequence[int], **settings: Any) -> Iterator[int]:
        return super().generate(ids, **(settings | {"stop_ids": ()}))


def test_a_lost_cache_is_named(tiny_bundle: Path) -> None:
    variant = gguf_variant("gguf-f16", "model-f16.gguf")
    prompt = [261, 269, 270, 30, 40, 50]
    for engine_class, passed in ((GgufEngine, True), (Forgetful, False)):
        engine = engine_class(tiny_bundle, variant, threads=1)
        check = check_decode("gguf-f16", engine, prompt, CONTEXT, (0,))
        engine.close()
        assert check.passed == passed
        assert passed or "KV cache" in str(check.cause)


@pytest.mark.parametrize("natural", [True, False])
def test_a_stop_id_that_is_not_heeded_fails(natural: bool, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    """Both with a stop id that the checkpoint itself comes to, and with a token made one."""
    checkpoint = read_checkpoint(tiny_checkpoint)
    reference = load_reference(checkpoint)
    prompts = [[261, 269, 270, 30, 40, 50] * 2, [9, 8, 7, 6] * 3]
    if natural:
        checkpoint = replace(checkpoint, stop_ids=(299, reference.greedy(prompts[0][:6], 6)[5]))
    continuations = continue_texts(reference, checkpoint, prompts, CONTEXT)
    assert (continuations.expected[0][-1] in checkpoint.stop_ids) == natural
    for engine_class, passed in ((GgufEngine, True), (Deaf, False)):
        engine = engine_class(tiny_bundle, gguf_variant("gguf-f16", "model-f16.gguf"), threads=1)
        found = continue_by(engine, continuations, checkpoint.stop_ids)
        check = check_stops("gguf-f16", engine, continuations, found, checkpoint.stop_ids)
        engine.close()
        assert check.passed == passed
        assert passed or "does not heed" in str(check.cause)
