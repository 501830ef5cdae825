"""Two thousand lines and more that tell tokenizers apart, the same each time.

corpus.txt has sentences in thirty scripts and more, a line each, and corpus_code.txt code, data formats, addresses
and logs. The rest follows from them by rule: edge whitespace, digits, casing, contractions, emoji, marks, controls.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
# Each kind of blank that a splitting rule may treat in a way of its own: ASCII, no-break, em, ideographic.
_BLANKS = (" ", "  ", "   ", "\t", "\t\t", " \t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\n\t", "\v", "\f",
           "\u00a0", " \u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "    ", "        ", "\n\n\n", "\r\n\r\n",
           " \n \n ", "\t\n\t", " " * 15, " " * 16, " " * 33)  # fmt: skip
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'LL", "'D", "\u2019s", "'x",
            "''s", "'", "'s't", "'r", "'v", "'l", "'there", "'Reilly", "'Sullivan",
            "'MALLEY", "'llama", "'very", "'dort", "'n'roll")  # fmt: skip
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_DIGITS = ("0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "๐๑๒๓๔๕๖๗๘๙", "０１２３４５６７８９", "၀၁၂၃၄၅၆၇၈၉", "𝟘𝟙𝟚𝟛𝟜𝟝𝟞𝟟𝟠𝟡")
_EMOJI = "🙂 😂 👍 👋 ❤ 🔥 🎉 🤔 🙏 🐈 🍕 ⚽ ☀ ✈ ☎ ⌚ 🏠 💯 🫠 🪿".split()
_JOINED = "👩‍👩‍👧‍👦 👨‍💻 🏳️‍🌈 🏴‍☠️ 🧑🏿‍🚀 👩🏽‍❤️‍💋‍👨🏻 🇫🇷 🇯🇵🇧🇷 🇺 🏴󠁧󠁢󠁳󠁣󠁴󠁿 1️⃣ #️⃣*️⃣ ❤️‍🔥 👁️‍🗨️ 🤷🏾‍♀️".split()
_MARKS = ("\u0300", "\u0301", "\u0308", "\u0327", "\u0303", "\u0323\u0307", "\u20dd", "\u0338", "\u0489")
_INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u200e", "\u202e", "\u2060", "\ufeff", "\u00ad", "\u034f", "\ufe0f",
              "\u180e", "\ufffd", "\ufffc", "\ue000", "\U000e0001", "\U0010ffff", "\ufdd0", "\u061c")  # fmt: skip


@cache
def corpus_lines() -> tuple[str, ...]:
    """Every line, no two alike; more than two thousand, in more than thirty scripts."""
    sentences = _read("corpus.txt")
    code = _read("corpus_code.txt")
    parts = (
        sentences,
        code,
        _edges([*sentences, *code]),
        _mixed(sentences),
        _cased(sentences),
        _forms(sentences),
        _blank_runs(),
        _contractions(),
        _digits(),
        _punctuation(),
        _emoji(),
        _marks(),
        _controls(),
        _symbols(),
    )
    return tuple(dict.fromkeys(itertools.chain.from_iterable(parts)))


def scripts(lines: Iterable[str]) -> set[str]:
    """The scripts of the letters in `lines`: the first words of their Unicode names, such as GREEK."""
    letters = {character for line in lines for character in line if character.isalpha()}
    return {unicodedata.name(character, "").split(" ")[0] for character in letters} - {""}


def _read(name: str) -> list[str]:
    # split, not splitlines: some lines end in characters that splitlines would split at.
    return [line for line in (_FOLDER / name).read_text(encoding="utf-8").split("\n") if line]


def _edges(lines: list[str]) -> Iterator[str]:
    """Blanks before, after and in the middle of lines, each kind many times."""
    for i, line in enumerate(lines):
        before, after, between = (_BLANKS[(i * step) % len(_BLANKS)] for step in (1, 7, 11))
        half = len(line) // 2
        yield f"{before}{line}{after}"
        yield f"{line[:half]}{between}{line[half:]}"


def _mixed(sentences: list[str]) -> Iterator[str]:
    """Words of two scripts with digits, emoji and punctuation right between them."""
    for i, sentence in enumerate(sentences):
        other = sentences[(i * 37 + 11) % len(sentences)]
        left, right = sentence.split(" ")[0][:24], other.split(" ")[-1][:24]
        digits = "".join(_DIGITS[i % len(_DIGITS)][(i + j * 3) % 10] for j in range(i % 9 + 1))
        emoji, sign = _EMOJI[i % len(_EMOJI)], _PUNCTUATION[i % len(_PUNCTUATION)]
        yield f"{left}{digits}{right}"
        yield f"{left} {emoji}{digits} {right}{emoji}{sign}"
        yield f"{sign}{left}{sign}{sign}{digits}{sign}{right} {sign}"


def _cased(sentences: list[str]) -> Iterator[str]:
    for sentence in sentences:
        yield sentence.upper()
        yield sentence.title()
        yield sentence.swapcase().replace(" ", "")


def _forms(sentences: list[str]) -> Iterator[str]:
    """The other normal forms of each sentence, where they differ from it."""
    for sentence in sentences:
        yield from (unicodedata.normalize("NFD", sentence), unicodedata.normalize("NFC", sentence))
        yield unicodedata.normalize("NFKD", sentence)


def _blank_runs() -> Iterator[str]:
    for run in _BLANKS:
        yield from (run, f"a{run}", f"{run}a", f"a{run}b", f"1{run}2", f"!{run}?", f".{run}A", f"é{run}漢")
    for first, second in itertools.product(_BLANKS[:15], repeat=2):
        yield f"x{first}{second}y"


def _contractions() -> Iterator[str]:
    for word, ending in itertools.product(("it", "WE", "Ann", "o", "1", "é", " "), _ENDINGS):
        yield f"{word}{ending}"
        yield f"so {word}{ending} fine."


def _digits() -> Iterator[str]:
    """Runs of 1 to 40 digits, bare, between letters and grouped; and short runs in seven scripts."""
    for length in range(1, 41):
        run = "".join(str((i * 7 + length) % 10) for i in range(length))
        yield from (run, f" {run}", f"a{run}b", f"-{run}.{run[:3]}e+{run[:2]}", f"{int(run):,}", f"{int(run):_}")
        yield f"${run}%"
    for digits, length in itertools.product(_DIGITS, range(1, 8)):
        yield f"{digits[:length]} x{digits[-length:]}"
    yield from ("½ ⅓ ¼ ²³ ₄₅ ① ⑳ Ⅷ ⅻ 一二三百千万 零 〇 ㊿ ፲፻ 𐄇", "1st 2nd 3rd 4th 1ª 2º n° 5′ 6″ 7‰", "１，２３４．５")


def _punctuation() -> Iterator[str]:
    for i, sign in enumerate(_PUNCTUATION):
        other = _PUNCTUATION[(i + 5) % len(_PUNCTUATION)]
        yield from (sign, sign * 2, f"{sign * 3} {other * 4}", f"{sign}a", f"a{sign}", f" {sign}b{other}\n")
        yield f"{sign}{other}\n\n{sign} {other}\r\n{sign * 17}"


def _emoji() -> Iterator[str]:
    tones = [chr(code) for code in range(0x1F3FB, 0x1F400)]
    for i, emoji in enumerate(_EMOJI):
        yield from (emoji, f"{emoji}{tones[i % 5]}", f"{emoji}\ufe0f ok{emoji}{emoji}", f" {emoji}\n")
    for joined in _JOINED:
        yield from (joined, f"a{joined}b", f" {joined} {joined * 2}!")
    yield ":-) ;) XD <3 ^_^ (╯°□°)╯︵ ┻━┻ ¯\\_(ツ)_/¯ ಠ_ಠ"


def _marks() -> Iterator[str]:
    """Marks on letters, digits, signs and nothing, some of which no normal form composes."""
    for mark, base in itertools.product(_MARKS, ("e", "o", "Z", "1", "!", " ", "漢", "я", "e" + _MARKS[0])):
        yield f"{base}{mark}"
        yield f"a {base}{mark}{base} b"


def _controls() -> Iterator[str]:
    for code in (*range(1, 9), *range(14, 32), *range(127, 160)):
        yield f"a{chr(code)}b {chr(code)}"
    for sign in _INVISIBLE:
        yield from (f"a{sign}b", f"{sign} 1{sign}2 {sign}")


def _symbols() -> Iterator[str]:
    """Letters that are no plain ones: mathematical, full width, ligatures, titles, small capitals; and signs."""
    yield from ("𝒜𝓁𝓅𝒽𝒶 𝔹𝕖𝕥𝕒 𝚐𝚊𝚖𝚖𝚊", "ＦＵＬＬ ｗｉｄｔｈ！", "ﬁ ﬂ ﬀ ﬆ Ǆ ǅ ǆ ß ẞ ı İ ſ K Å Ω", "ʰʷˠ ᵃᵇᶜ ₐₑₒ ᴀʙᴄ ⓐⓑ Ⓒ")
    yield from ("∀x∈ℝ: ∃y≤x ∧ ¬(a⊕b) ⇒ ∑∏√∞∂∇", "← ↑ → ↓ ↔ ⇐ ⇒ ➜ ⟶", "─│┌┐└┘├┤ ▀▄█▌▐ ░▒▓ ◆●■▲", "€ £ ¥ ₹ ₽ ₿ ¢ ¤")
    yield from ("“a” ‘b’ „c“ «d» ‹e› – — … ‥ • · ‚ †‡ ※ ¶§", "、。「」『』【】〈〉《》〜・！？：；")
    yield "¿¡ ؟،؛ ।॥ ፡። ၊။ ។៕ ༎ ᠂᠃ ჻"
    yield from ("a" * 67, "ab" * 33, "\u00e9" * 40, "漢" * 40, "🙂" * 20, "-" * 80, "=" * 79 + ">", "A" * 16 + "b" * 17)
