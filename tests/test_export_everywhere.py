"""One exported folder, four runtimes: the same prompt ids, the same 64 greedy tokens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

import onnxruntime_genai as og
from export_students import SHARED_TOKENIZERS, gguf_variant, make_student

from pocketstill.engines import open_engine
from pocketstill.template import render
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.companions import write_companions
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.onnx.build import build_onnx
from pocketstill_export.variants import parse_variants

PACKAGES = Path(__file__).parents[1] / ".peers" / "node_modules"
MESSAGES = [{"role": "user", "content": "The coin is heads up. Flip it  three times, 12345 naïve 漢字 🙂"}]
TOKENS = 64
VARIANTS = ("onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int4")
TRAILING = "\n__ggml_vocab_test__\n"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (PACKAGES / "@huggingface").is_dir(),
    reason="needs node and transformers.js: run `make peers`",
)
needs_shared = pytest.mark.skipif(not SHARED_TOKENIZERS.is_dir(), reason="needs ../shared/data")


@dataclass(frozen=True)
class Answers:
    """What a runtime made of the folder: the prompt's ids, and the ids that followed."""

    prompt: list[int]
    new: list[int]


@pytest.fixture(scope="module", params=["own", pytest.param("phi-3", marks=needs_shared)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with our students' tokenizer, and a Llama with Phi-3's real tokenizer and template.

    Not a Qwen2: transformers 5 gives a model of that type its own pre-tokenizer, whatever tokenizer.json says.
    """
    student, out = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("exported")
    if request.param == "own":
        make_student(student, max_position_embeddings=256)
    else:
        source = SHARED_TOKENIZERS / request.param
        end = 32000
        make_student(student, tokenizer=source, max_position_embeddings=256, eos_token_id=end, pad_token_id=end)
        (student / "chat_template.jinja").write_bytes((source / "chat_template.jinja").read_bytes())
    without_ties(student)
    checkpoint = read_checkpoint(student)
    specs = parse_variants(VARIANTS)
    config = build_onnx(checkpoint, out, specs, context_length=256)
    write_companions(checkpoint, out, context_length=256, generation={}, onnx=specs, genai_config=config)
    write_gguf(checkpoint, out / "model-f32.gguf", precision="f32", context_length=256, name="tiny")
    return out


def without_ties(student: Path) -> None:
    """Makes the likeliest token stand out, and the end token never the likeliest: its row of zeros has the logit 0.

    llama.cpp keeps its cache in half precision, which moves logits by a thousandth of their spread; among 32,000 random
    ones the first two are often closer. So only some hundred tokens get large logits.
    """
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(student / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    if len(embedding) > 1000:
        embedding[torch.arange(len(embedding)) % 103 != 0] *= 0.3
    embedding[json.loads((student / "generation_config.json").read_text())["eos_token_id"]] = 0
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})


def by_transformers(folder: Path) -> Answers:
    """Tokenizer, template and the f32 GGUF, all read by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model-f32.gguf", dtype=torch.float32)
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(found.logits).topk(2).values
    assert float((best[..., 0] - best[..., 1]).min()) > 0.01, "the student has ties: make another"
    return Answers(prompt, found.sequences[0, len(prompt) :].tolist())


def by_genai(folder: Path, file: str | None = None) -> Answers:
    """onnxruntime-genai over the folder as it is, or over one of its files; the template is its tokenizer's."""
    config = og.Config(str(folder))
    if file is not None:
        config.overlay(json.dumps({"model": {"decoder": {"filename": file}}}))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    text = tokenizer.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=True)
    prompt = [int(i) for i in tokenizer.encode(text)]
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + TOKENS, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return Answers(prompt, [int(i) for i in generator.get_sequence(0)[len(prompt) :]])


def by_llama_cpp(folder: Path) -> Answers:
    """The f32 GGUF: ids by its own tokenizer, the template out of its metadata."""
    from gguf import GGUFReader

    reader = GGUFReader(folder / "model-f32.gguf")
    template, bos = reader.get_field("tokenizer.chat_template"), reader.get_field("tokenizer.ggml.bos_token_id")
    bos_token = reader.get_field("tokenizer.ggml.tokens").contents(bos.contents()) if bos else ""
    engine = open_engine(folder, gguf_variant("gguf-f32", "model-f32.gguf"), threads=1)
    try:
        prompt = engine.native_encode(render(template.contents(), MESSAGES, bos_token=bos_token))
        return Answers(prompt, list(engine.generate(prompt, max_new_tokens=TOKENS, stop_ids=())))
    finally:
        engine.close()


def by_transformers_js(folder: Path, *dtypes: str) -> dict[str, Answers]:
    script = Path(__file__).with_name("everywhere.mjs")
    done = subprocess.run(
        ["node", str(script), str(folder), str(PACKAGES), ",".join(dtypes), str(TOKENS), json.dumps(MESSAGES)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"NODE_NO_WARNINGS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {dtype: Answers(found["prompt"], new) for dtype, new in found["new"].items()}


@needs_node
def test_64_greedy_tokens_in_four_runtimes(folder: Path) -> None:
    expected = by_transformers(folder)
    assert len(expected.new) == TOKENS
    assert len(set(expected.new)) > 12
    assert by_genai(folder, "onnx/model.onnx") == expected
    assert by_llama_cpp(folder) == expected
    assert by_transformers_js(folder, "fp32") == {"fp32": expected}


@needs_node
def test_quantized_files_answer_alike_in_genai_and_transformers_js(folder: Path) -> None:
    """What each takes by itself is the int4 file; half precision and int8 are there for who asks."""
    found = by_transformers_js(folder, "own", "q4", "int8", "fp16")
    assert found["own"] == found["q4"] == by_genai(folder) == by_genai(folder, "onnx/model_q4.onnx")
    assert found["int8"] == by_genai(folder, "onnx/model_int8.onnx")
    assert found["fp16"] == by_genai(folder, "onnx/model_fp16.onnx")


@needs_shared
@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "phi-3"])
def test_ids_in_the_onnx_folder(name: str, tmp_path: Path) -> None:
    """onnxruntime-genai's own tokenizer, on the texts that llama.cpp tests its vocabularies with."""
    source = SHARED_TOKENIZERS / name
    small = {"hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    checkpoint = read_checkpoint(make_student(tmp_path / "student", tokenizer=source, **small))
    out = tmp_path / "out"
    out.mkdir()
    specs = parse_variants(["onnx-fp32"])
    config = build_onnx(checkpoint, out, specs, context_length=128)
    write_companions(checkpoint, out, context_length=128, generation={}, onnx=specs, genai_config=config)
    tokenizer = og.Tokenizer(og.Model(str(out)))
    prefix = source / f"ggml-vocab-{name}.gguf"
    texts = prefix.with_name(prefix.name + ".inp").read_text(encoding="utf-8").split(TRAILING)
    expected = prefix.with_name(prefix.name + ".out").read_text().splitlines()
    assert len(expected) > 40
    wrong = [
        (text, ids, found)
        for text, line in zip(texts, expected, strict=False)
        if (found := [int(i) for i in tokenizer.encode(text)]) != (ids := [int(i) for i in line.split()])
    ]
    assert not wrong, wrong[0]
