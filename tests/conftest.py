"""Shared fixtures: a tiny random Llama with our own students' tokenizer, the bundle made of it, and a whole run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Finished, NotedTeacher, environment, pocketstill, write_recipe

# Two threads only wait for each other over models this small. Read when torch and the engines are first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell has what it runs in the background ignore interrupts, and some tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Llama 3's pre-tokenizer. Whole words are in the vocabulary; a word that is not is seen letter by letter.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
WORDS = "The the A coin is heads tails up So still not flips does yes no Answer last letter of swap has 10 12"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 256
PARITY_TEXTS = [
    "<|user|>The coin is heads up.<|end|><|assistant|>",
    "Thelma  has 12345 coins: naïve 漢字 🙂\n\n\ttail ",
]


def write_tokenizer(folder: Path) -> int:
    """Writes tokenizer.json, tokenizer_config.json and the template; returns the size of the vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [
        *SPECIAL,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "ĠĠ",
        *WORDS.split(),
        *("Ġ" + w for w in WORDS.split()),
    ]
    tokens = list(dict.fromkeys(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` leaves it: two layers of width 64, random weights, context 256."""
    torch = pytest.importorskip("torch", reason="needs the workshop extra")
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    vocabulary = write_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def suite_rows(n: int) -> list[dict[str, Any]]:
    """`n` questions of each of two skills; the golds are arbitrary, the tiny model knows nothing."""
    rows = []
    for i in range(n):
        ask = [
            {
                "role": "user",
                "content": f"A coin is heads up. Ana{i} flips the coin. Is the coin still heads up?",
            }
        ]
        rows.append(
            {
                "id": f"coin-{i}",
                "skill": "coin",
                "messages": ask,
                "gold": "no",
                "answer_kind": "yes_no",
                "tags": ["seen"],
            }
        )
        ask = [{"role": "user", "content": f"The last letter of Ana{i} Bo"}]
        rows.append(
            {
                "id": f"letters-{i}",
                "skill": "letters",
                "messages": ask,
                "gold": "ao",
                "answer_kind": "text",
                "tags": [],
            }
        )
    return rows


SKILLS = {"coin": {"kind": "yes_no", "gate": None}, "letters": {"kind": "text", "gate": None}}
ALL_VARIANTS = ["onnx-fp32", "onnx-int4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m"]


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five variants of the tiny checkpoint in one bundle, with a suite of 2 x 6 questions."""
    import json

    from pocketstill.bundle import Bundle, write_bundle_json

    export = pytest.importorskip("pocketstill_export", reason="needs the workshop extra")
    out = tmp_path_factory.mktemp("tiny") / "bundle"
    export.export(
        tiny_checkpoint,
        out,
        variants=ALL_VARIANTS,
        context_length=CONTEXT,
        generation={"max_new_tokens": 24, "temperature": 0.0},
        skills=SKILLS,
        name="tiny",
        parity_texts=PARITY_TEXTS,
    )
    bundle = Bundle.load(out)
    (out / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in suite_rows(6)), encoding="utf-8")
    write_bundle_json(
        out,
        name=bundle.name,
        variants=bundle.variants,
        default="onnx-int4",
        stop_ids=bundle.stop_ids,
        generation=bundle.generation,
        context_length=bundle.context_length,
        skills=bundle.skills,
        threads={variant.name: 1 for variant in bundle.variants},
    )
    return out


@pytest.fixture(scope="session")
def noted_teacher() -> Iterator[NotedTeacher]:
    """An embedded teacher that lasts for the session; what it is asked is noted."""
    pytest.importorskip("starlette", reason="needs the workshop extra")
    from teaching import serving

    from pocketstill_pipeline.teacher import TeacherConfig
    from pocketstill_pipeline.teacher.server import make_app

    teacher = NotedTeacher()
    with serving(teacher.noting(make_app(TeacherConfig(seed=3)))) as url:
        teacher.url = url
        yield teacher


@pytest.fixture(scope="session")
def finished(noted_teacher: NotedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny recipe run to its end by the installed command. Not to be changed; copy it."""
    pytest.importorskip("torch", reason="needs the workshop extra")
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder / "tiny.toml", noted_teacher.url)
    first = len(noted_teacher.asked)
    done = pocketstill("run", recipe, "--runs", folder / "runs", env=environment(HF_HOME=str(folder / "home")))
    assert done.returncode == 0, done.stderr
    return Finished(recipe, folder / "runs", folder / "home", done, tuple(noted_teacher.asked[first:]))


def pytest_unconfigure() -> None:
    """Close what llama_cpp leaves open, whose warnings would come after pytest's last line."""
    utilities = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        file = getattr(utilities, name, None)
        if file is not None:
            file.close()
