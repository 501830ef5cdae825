"""Tiny random students of every architecture that is exported, with tokenizers made here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from conftest import LLAMA3, TEMPLATE, write_tokenizer

from pocketstill.bundle import Variant

SHARED_TOKENIZERS = Path(__file__).parents[2] / "shared" / "data" / "tokenizers"
IDS = [list(range(3, 40)), [5, 260, 261, 4, 9, 7] * 9]


def make_student(folder: Path, architecture: str = "Llama", *, tokenizer: Path | None = None, **config: Any) -> Path:
    """A checkpoint as save_pretrained leaves it: two layers of width 64, four heads on two keys.

    With `tokenizer`, a folder whose tokenizer files are taken; else the word/letter one of our students.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        vocabulary = write_tokenizer(folder)
    else:
        from tokenizers import Tokenizer

        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, folder / name)
            (folder / name).chmod(0o644)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
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
    }
    if architecture == "Qwen3":
        settings["head_dim"] = 32
    torch.manual_seed(7)
    config_class = getattr(transformers, f"{architecture}Config")
    model = getattr(transformers, f"{architecture}ForCausalLM")(config_class(**(settings | config)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases start at zero and norms at one, where a lost or swapped one would not show.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * (0.3 if name.endswith("norm.weight") else 0.5))
    model.generation_config = transformers.GenerationConfig(eos_token_id=settings["eos_token_id"])
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
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from pocketstill_export.corpus import TEXTS

    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
    )
    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text, LLAMA3, *TEXTS * 3], trainer)
    return tokenizer
