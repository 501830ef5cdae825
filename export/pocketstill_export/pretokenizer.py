"""The name that llama.cpp knows a pre-tokenizer by, derived from tokenizer.json's own regular expressions.

llama.cpp carries the splitting rules in code and picks them by `tokenizer.ggml.pre`. A wrong name loads
without a word and gives other token ids, so a name is given only where the whole pipeline (normalizer,
regular expressions, byte level, and whether merges are ignored for words in the vocabulary) is the one that
the name stands for. Parity then compares the ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketstill_export.errors import ExportError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGIT = r"\p{N}"

# (regular expressions in order, ignore_merges) -> the name in llama.cpp's src/llama-vocab.cpp
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((DIGIT, GPT2), False): "smollm",
}


def pretokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """The `tokenizer.ggml.pre` of a parsed tokenizer.json.

    Raises:
        ExportError: when llama.cpp has no pre-tokenizer that splits as this one does; the message says what
            differs.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _refusal("it is not a byte-level BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refusal(f"it uses {key}")
    if (tokenizer.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        raise _refusal(f"it normalizes text by {tokenizer['normalizer']['type']}")
    if (tokenizer.get("decoder") or {"type": "ByteLevel"}).get("type") != "ByteLevel":
        raise _refusal("its decoder is not ByteLevel")
    for token in tokenizer.get("added_tokens") or ():
        if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise _refusal(f"the added token {token['content']!r} strips the text around it")
    patterns = _patterns(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(model.get("ignore_merges"))
    name = _NAMES.get((patterns, ignore_merges))
    if name is None and (patterns, not ignore_merges) in _NAMES:
        raise _refusal(f"no pre-tokenizer of llama.cpp has its regular expression with ignore_merges={ignore_merges}")
    if name is None:
        raise _refusal(f"no pre-tokenizer of llama.cpp splits by {' then '.join(patterns)!r}")
    return name


def _patterns(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The splitting expressions in order, those implied by Digits and ByteLevel written out."""
    steps = list((pre_tokenizer or {}).get("pretokenizers") or ([pre_tokenizer] if pre_tokenizer else []))
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _refusal("its pre-tokenizer does not end in ByteLevel without a prefix space")
    patterns = []
    for step in steps[:-1]:
        pattern = step.get("pattern") or {}
        if (
            step.get("type") == "Split"
            and step.get("behavior") == "Isolated"
            and not step.get("invert")
            and "Regex" in pattern
        ):
            patterns.append(str(pattern["Regex"]))
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            patterns.append(DIGIT)
        else:
            raise _refusal(f"it has a {step.get('type')} step that llama.cpp does not know")
    if steps[-1].get("use_regex", True):
        patterns.append(GPT2)
    return tuple(patterns)


def _refusal(reason: str) -> ExportError:
    return ExportError(
        f"this tokenizer cannot go into GGUF: {reason}; leave the gguf variants out or retrain the tokenizer"
    )
