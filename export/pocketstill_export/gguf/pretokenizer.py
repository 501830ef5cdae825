"""The name that llama.cpp knows a pre-tokenizer by, derived from tokenizer.json's own regular expressions.

llama.cpp carries the splitting rules in code and picks them by `tokenizer.ggml.pre`. A wrong name loads
without a word and gives other token ids, so a name is given only where the whole pipeline (normalizer,
regular expressions, byte level, and whether merges are ignored for words in the vocabulary) is the one that
the name stands for. Parity then compares the ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pocketstill_export.errors import ExportError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
DIGIT = r"\p{N}"
PUNCTUATION = "punctuation"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"]
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = "|".join([*_CASED, DIGIT, _CASED_TAIL])
_GPT4O = "|".join([*(word + _CONTRACTIONS + "?" for word in _CASED), r"\p{N}{1,3}", _CASED_TAIL])
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_DEEPSEEK = (
    rf"{_ASCII_PUNCTUATION}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-"
    r"ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ"
    r"-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK_SIGNS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
_YOUTU_CJK = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_SPACE_RUNS = "|".join(rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1))


class Known(NamedTuple):
    """A pre-tokenizer of llama.cpp's src/llama-vocab.cpp: the splits of a tokenizer.json in order, and flags.

    `clean` is whether spaces before punctuation are dropped when text is made of tokens, which has no effect on
    ids; of two names that split alike the one with the tokenizer's own choice is taken, the first if it has none.
    """

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    clean: bool = False


KNOWN = (
    Known("gpt-2", (GPT2,), clean=True),
    Known("trillion", (GPT2,)),
    Known("llama-bpe", (LLAMA3,), ignore_merges=True, clean=True),
    Known("smaug-bpe", (LLAMA3,), clean=True),
    Known("qwen2", (QWEN2,)),
    Known("stablelm2", (QWEN2,), clean=True),
    Known("qwen35", (_QWEN35,)),
    Known("smollm", (DIGIT, GPT2)),
    Known("starcoder", (DIGIT, GPT2), clean=True),
    Known("granite-embed-multi-97m", (_GPT4O,), ignore_merges=True),
    Known("deepseek-v3", (r"\p{N}{1,3}", _CJK, _DEEPSEEK)),
    Known("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT)),
    Known(
        "deepseek-llm",
        (r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_SIGNS, r"\s+$", "[一-龥ࠀ-一가-퟿]+", DIGIT),
    ),
    Known("youtu", (_YOUTU_CJK, _GPT4O.replace(r"\p{N}{1,3}", DIGIT)), ignore_merges=True),
    Known("jais-2", (LLAMA3.replace(r"\s+(?!\S)|\s+", rf"{_SPACE_RUNS}|\s{{1,2}}(?!\S)|\s{{1}}"),), clean=True),
    Known("minicpm5", (r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")), ignore_merges=True, clean=True),
    Known("bailingmoe", (QWEN2.replace(r"\s*[\r\n]+|", r"\s*[\r\n]|"),)),
    Known("seed-coder", (QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+"),)),
    Known("ufakzeka", (QWEN2.removeprefix(_CONTRACTIONS + "|"),)),
    Known("laguna", (r"[^\n]+|[\n]+", QWEN2)),
    Known(
        "exaone-moe",
        (
            QWEN2.replace(r"\p{L}+", r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+").replace(
                r"[\r\n]*|\s*[\r\n]+", r"[\r\n/]?|\s*[\r\n]"
            ),
        ),
        clean=True,
    ),
    Known("spark2_5", (r"\p{N}{1,3}", _CJK, _DEEPSEEK.replace(r"+[\r\n]*|\s*[\r\n]+", r"+|[\r\n]"), DIGIT)),
    Known("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    Known("poro-chat", (_BLOOM,)),
    Known("bloom", (_BLOOM,), clean=True),
    Known("viking", (_BLOOM, DIGIT)),
    Known("falcon", (PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), clean=True),
)

# llama.cpp has names for these, but the expressions behind the names are others, and so are the ids.
_INEXACT = {
    (_GPT4O,): "its gpt-4o cuts letters from their combining marks, so Hindi and Thai differ",
    (_TEKKEN,): "its tekken cuts letters from their combining marks, so Hindi and Thai differ",
    (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O): "its tiny_aya groups long numbers otherwise",
}


def pretokenizer_name(tokenizer: Mapping[str, Any], *, clean: bool | None = None) -> str:
    """The `tokenizer.ggml.pre` of a parsed tokenizer.json.

    Args:
        tokenizer: parsed.
        clean: `clean_up_tokenization_spaces` of tokenizer_config.json, None where it says nothing.

    Raises:
        ExportError: when llama.cpp has no pre-tokenizer that splits as this one does; the message says what
            differs.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _refusal(f"it is not a byte-level BPE but {model.get('type')}")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refusal(f"it uses {key}")
    _check_normalizer(tokenizer.get("normalizer"))
    if (tokenizer.get("decoder") or {"type": "ByteLevel"}).get("type") != "ByteLevel":
        raise _refusal("its decoder is not ByteLevel")
    for token in tokenizer.get("added_tokens") or ():
        if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise _refusal(f"the added token {token['content']!r} strips the text around it")
    patterns = _patterns(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(model.get("ignore_merges"))
    alike = [known for known in KNOWN if known.patterns == patterns]
    fitting = [known for known in alike if known.ignore_merges == ignore_merges]
    if fitting:
        return next((known.name for known in fitting if known.clean == clean), fitting[0].name)
    if patterns in _INEXACT:
        raise _refusal(f"llama.cpp does not split as its regular expression says: {_INEXACT[patterns]}")
    if alike:
        raise _refusal(f"no pre-tokenizer of llama.cpp has its regular expression with ignore_merges={ignore_merges}")
    raise _refusal(f"no pre-tokenizer of llama.cpp splits by {' then '.join(patterns)!r}")


def _check_normalizer(normalizer: Mapping[str, Any] | None) -> None:
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    for step in steps:
        if step.get("type") != "NFC":
            raise _refusal(f"it normalizes text by {step.get('type')}")


def _patterns(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The splitting expressions in order, those implied by other steps written out."""
    steps = list((pre_tokenizer or {}).get("pretokenizers") or ([pre_tokenizer] if pre_tokenizer else []))
    levels = [at for at, step in enumerate(steps) if step.get("type") == "ByteLevel"]
    # What follows it sees bytes in place of characters; only digits are the same then.
    rest = [_pattern(step) for step in steps[levels[0] + 1 :]] if levels else []
    if len(levels) != 1 or steps[levels[0]].get("add_prefix_space") or set(rest) - {r"\p{N}+", "[0-9][0-9][0-9]"}:
        raise _refusal("its pre-tokenizer does not end in ByteLevel without a prefix space")
    found = [_pattern(step) for step in steps]
    return tuple(pattern for pattern in found if pattern is not None)


def _pattern(step: Mapping[str, Any]) -> str | None:
    """The expression that one step splits by, in the spelling of the table; None where it does not split."""
    kind, pattern = step.get("type"), (step.get("pattern") or {}).get("Regex")
    if kind == "ByteLevel":
        return GPT2 if step.get("use_regex", True) else None
    if kind == "Digits":
        return DIGIT if step.get("individual_digits") else r"\p{N}+"
    if kind == "Punctuation" and step.get("behavior") == "Contiguous":
        return PUNCTUATION
    if kind == "Split" and pattern is not None:
        isolated = step.get("behavior") == "Isolated" and not step.get("invert")
        # Keeping what matches and dropping the rest is the same where everything matches.
        kept = step.get("behavior") == "Removed" and step.get("invert") and pattern.endswith(r"|\s+")
        if isolated or kept:
            return _spelled(str(pattern))
    raise _refusal(f"it has a {kind} step that llama.cpp does not know")


def _spelled(pattern: str) -> str:
    """The same expression in one spelling: control characters as escapes, contractions in one way, and no
    possessive quantifiers, which make no difference where the next alternative starts with another class.
    """
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    for spelling in (
        "'(?i:[sdmt]|ll|ve|re)",
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    ):
        pattern = pattern.replace(spelling, _CONTRACTIONS)
    pattern = re.sub(r"(?<!\\)([?+])\+", r"\1", pattern)
    return pattern.replace(r"\p{N}{1}|", r"\p{N}|")


def _refusal(reason: str) -> ExportError:
    return ExportError(
        f"this tokenizer cannot go into GGUF: {reason}; leave the gguf variants out or retrain the tokenizer"
    )
