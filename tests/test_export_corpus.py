"""The corpus that ids are compared over: how much, which scripts, what else, always the same, and sharp enough."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import unicodedata
from collections import defaultdict
from itertools import combinations

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from pocketstill_export.gguf.pretokenizer import GPT2, LLAMA3, QWEN2
from pocketstill_export.parity.corpus_lines import corpus_lines

LINES = corpus_lines()
SCRIPTS = (
    "LATIN CYRILLIC GREEK HEBREW ARABIC DEVANAGARI BENGALI TAMIL TELUGU KANNADA MALAYALAM GUJARATI GURMUKHI SINHALA "
    "THAI LAO KHMER MYANMAR GEORGIAN ARMENIAN ETHIOPIC CJK HIRAGANA KATAKANA HANGUL TIBETAN MONGOLIAN CHEROKEE"
).split()


def lines_by_script() -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for line in LINES:
        for name in {unicodedata.name(c, "").split(" ")[0] for c in line if unicodedata.category(c)[0] == "L"}:
            counts[name] += 1
    return counts


def test_at_least_two_thousand_lines_none_twice() -> None:
    assert len(LINES) == len(set(LINES)) >= 2_000
    assert all(LINES)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_has_many_lines(script: str) -> None:
    assert lines_by_script()[script] >= 20


@pytest.mark.parametrize("blank", [" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u3000", "\n\n", " \n"])
@pytest.mark.parametrize("place", ["start", "end", "middle"])
def test_every_blank_stands_at_every_place(blank: str, place: str) -> None:
    def has(line: str) -> bool:
        core = line.strip()
        if not core:
            return False
        if place == "middle":
            return blank in core
        return line.startswith(blank) if place == "start" else line.endswith(blank)

    assert sum(map(has, LINES)) >= 5


@pytest.mark.parametrize("length", range(1, 41))
def test_digits_run_to_forty(length: int) -> None:
    assert any(len(line) == length and line.isascii() and line.isdigit() for line in LINES)


STUMBLES = (
    *(
        "\u200d",
        "\U0001f3fd",
        "\U0001f1eb\U0001f1f7",
        "\ufe0f",
        "\x1b",
        "\x7f",
        "\u0085",
        "\ufeff",
        "e\u0301",
        "\u00e9",
    ),
    *("def ", '{"', "SELECT ", "https://", "</", "#include", "'ll", "'LL", "\u2019s", "!!", "1,", "\u2028", "𝟙", "٤"),
)


@pytest.mark.parametrize("part", STUMBLES)
def test_what_tokenizers_stumble_over_is_there(part: str) -> None:
    assert any(part in line for line in LINES)


def test_it_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from pocketstill_export.parity.corpus_lines import corpus_lines;"
        "print(hashlib.sha256('\\0'.join(corpus_lines()).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == hashlib.sha256("\0".join(LINES).encode()).hexdigest()


def pieces(pattern: str) -> list[list[str]]:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return [[piece for piece, _ in split.pre_tokenize_str(line)] for line in LINES]


def test_no_two_splitting_rules_agree_on_it() -> None:
    """Every rule of llama.cpp that differs by a detail must differ on some line, or a wrong name would go unseen."""
    rules = {
        "gpt-2": GPT2,
        "llama-bpe": LLAMA3,
        "qwen2": QWEN2,
        "contractions in lower case only": LLAMA3.replace("(?i:", "(?:"),
        "line ends apart": LLAMA3.replace(r"[\r\n]*|\s*[\r\n]+", r"|[\r\n]+"),
        "no line ends after punctuation": LLAMA3.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+"),
        "trailing blanks as one": LLAMA3.replace(r"|\s+(?!\S)|\s+", r"|\s+"),
        "marks with letters": LLAMA3.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+"),
        "two digits": LLAMA3.replace("{1,3}", "{1,2}"),
        "ASCII digits": LLAMA3.replace(r"|\p{N}{1,3}", "|[0-9]{1,3}"),
        "no-break space is no blank": LLAMA3.replace(r"|\s+(?!\S)|\s+", r"|[ \t\r\n]+(?!\S)|[ \t\r\n]+"),
    }
    cut = {name: pieces(pattern) for name, pattern in rules.items()}
    for first, second in combinations(rules, 2):
        assert rules[first] != rules[second]
        assert cut[first] != cut[second], f"{first} and {second}"
