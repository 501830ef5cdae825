"""Tiny random students of every architecture that is exported, with tokenizers made here."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import LLAMA3, TEMPLATE, write_tokenizer

from pocketstill.bundle import Variant

SHARED_TOKENIZERS = Path(__file__).parents[2] / "shared" / "data" / "tokenizers"
ROPE = {"rope_theta": 10000.0}
LLAMA3_ROPE = ROPE | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
IDS = [list(range(3, 40)), [5, 260, 261, 4, 9, 7] * 9]

# The defaults of transformers are for the large models.
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 32},
    "Mistral": {"sliding_window": None},
    "Gemma3": {"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window": 16},
    "Phi3": {"original_max_position_embeddings": 128},
}


def make_student(folder: Path, architecture: str = "Llama", *, tokenizer: Path | None = None, **config: Any) -> Path:
    """A checkpoint as save_pretrained leaves it: two layers of width 64, four heads on two keys.

    `architecture` is Llama, Mistral, Qwen2, Qwen3, Gemma3, Phi3 or GPT2. With `tokenizer`, a folder whose tokenizer
    files are taken; else the word/letter one of our students.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        vocabulary = write_tokenizer(folder)
    else:
        from tokenizers import Tokenizer

        for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
                (folder / name).chmod(0o644)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        vocabulary = max(ids.values()) + 1
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    } | OWN_SETTINGS.get(architecture, {})
    if architecture == "GPT2":
        for name in ("intermediate_size", "num_key_value_heads"):
            settings.pop(name)
    torch.manual_seed(7)
    names = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"), "GPT2": ("GPT2Config", "GPT2LMHeadModel")}
    of_config, of_model = names.get(architecture, (f"{architecture}Config", f"{architecture}ForCausalLM"))
    model = getattr(transformers, of_model)(getattr(transformers, of_config)(**(settings | config)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases start at zero and norms at one, where a lost or swapped one would not show.
            if parameter.ndim == 1:
                norm = name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
                parameter.add_(torch.randn_like(parameter) * (0.3 if norm else 0.5))
    model.generation_config = transformers.GenerationConfig(eos_token_id=(settings | config)["eos_token_id"])
    model.save_pretrained(folder)
    return folder


def gguf_variant(name: str, file: str) -> Variant:
    return Variant(name, "gguf", file, (file,), 0)


def worst_kl(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest KL of any row, computed otherwise than in the code under test (torch's own kl_div)."""
    import torch

    rows = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(found, dtype=torch.float64), -1),
        torch.log_softmax(torch.tensor(expected, dtype=torch.float64), -1),
        log_target=True,
        reduction="none",
    )
    return float(rows.sum(-1).max())


def byte_level_tokenizer(pattern: str | None, *, ignore_merges: bool, digits: bool = False) -> Any:
    """A byte-level BPE trained on this file and the corpus, with a pre-tokenizer of one's choice."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    return trained_bpe(steps, ignore_merges=ignore_merges)


def trained_bpe(steps: list[Any], *, ignore_merges: bool, texts: Sequence[str] = (), size: int = 600) -> Any:
    """A byte-level BPE with those pre-tokenizer steps, trained on this file, the corpus and `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from pocketstill_export.parity.corpus import TEXTS

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
    )
    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text, LLAMA3, *TEXTS * 3, *texts], trainer)
    return tokenizer


def vocabulary_lines(name: str) -> list[tuple[str, list[int]]]:
    """The texts of llama.cpp's own tests of a vocabulary (`name`.inp) with the ids of the original tokenizer."""
    prefix = SHARED_TOKENIZERS / name / f"ggml-vocab-{name}.gguf"
    texts = prefix.with_name(prefix.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = prefix.with_name(prefix.name + ".out").read_text().splitlines()
    return [(text, [int(i) for i in ids.split()]) for text, ids in zip(texts, lines, strict=False)]


@functools.cache
def _phi3_scores() -> list[float]:
    from gguf import GGUFReader

    fields = GGUFReader(SHARED_TOKENIZERS / "phi-3" / "ggml-vocab-phi-3.gguf").fields
    return list(fields["tokenizer.ggml.scores"].contents())


def sentencepiece_tokenizer(folder: Path, *, like: str = "phi-3", model: bool = True) -> Path:
    """The files of Phi-3's real tokenizer as its makers ship them, or in the manner of `mistral` or `gemma`.

    With `model`, a tokenizer.model with SentencePiece's own scores lies beside tokenizer.json.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto

    folder.mkdir(parents=True)
    source = SHARED_TOKENIZERS / "phi-3"
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    added = [token for token in tokenizer["added_tokens"] if like == "phi-3" or token["id"] < 3]
    for token in added:
        token["special"] |= like != "phi-3"
        token["rstrip"] = like == "phi-3" and token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    own = {token["content"] for token in added}
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {text: i for text, i in vocab.items() if i < 32000 or text in own}
    tokenizer["added_tokens"] = added
    if like == "gemma":
        tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        tokenizer["pre_tokenizer"] = split
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}
    config |= {} if like == "phi-3" else {"eos_token": "</s>", "pad_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model:
        scores = _phi3_scores()
        types = {0: 2, 1: 3, 2: 3} | {3 + byte: 6 for byte in range(256)}
        message = proto.ModelProto()
        for text, i in sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])[:32000]:
            message.pieces.add(piece=text, score=0.0 if i < 3 else scores[i], type=types.get(i, 1))
        message.trainer_spec.model_type = proto.TrainerSpec.BPE
        message.trainer_spec.byte_fallback = True
        message.trainer_spec.vocab_size = 32000
        message.normalizer_spec.add_dummy_prefix = like != "gemma"
        message.normalizer_spec.remove_extra_whitespaces = False
        (folder / "tokenizer.model").write_bytes(message.SerializeToString())
    return folder
