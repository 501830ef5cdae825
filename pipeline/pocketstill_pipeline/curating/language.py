"""Which language a text is in, offline: by its script, by English stop words, and else by py3langid's model.

py3langid (a fork of langid.py, Lui and Baldwin 2012) is one pure wheel of 4.6 MB whose model (139 languages) is
loaded without pickle; lingua's wheels are 96 MB, and fastText's model is a download of its own. It takes 0.06 ms a
rationale and 0.7 s to load, so it is loaded at the first text that is not plainly English.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

# A guess counts from this probability, and from that many letters, on.
CONFIDENT = 0.7
_LETTERS = 20
_LETTERS_OF_A_SCRIPT = 6

_ENGLISH = frozenset(
    """
a an and are as at be been but by can did do does each for from had has have he her his how if in into is it its many
more much not of on one or she so than that the their them then there these they this to was we were what when which
who will with would you
""".split()
)
# Of these the ones that no other language has for a common word, as Dutch has "was in of" and Portuguese "a do as".
_ENGLISH_ALONE = frozenset(
    """
and from into its many she that the their them then there these they this what when which who with would you
""".split()
)
_LANGUAGES = """
af ar az be bg bn ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko la lo lt
lv mk ml mn mr ms my nb ne nl nn no pa pl ps pt ro ru si sk sl sq sr sv sw ta te th tl tr uk ur uz vi xh yi zh zu zxx
""".split()
# Languages that share most of their words, or that a model takes for each other on a short text.
_ALIKE = (
    frozenset({"no", "nb", "nn", "da"}), frozenset({"hr", "sr", "bs", "sh"}), frozenset({"id", "ms", "jv", "su"}),
    frozenset({"es", "gl", "ast", "an", "ca"}), frozenset({"pt", "gl"}), frozenset({"cs", "sk"}),
    frozenset({"ru", "uk", "be", "bg"}), frozenset({"hi", "mr", "ne"}), frozenset({"fa", "ps", "ur", "ar"}),
    frozenset({"zh", "yue", "ja"}), frozenset({"nl", "af", "li"}), frozenset({"de", "lb", "nds", "als", "bar"}),
    frozenset({"it", "co", "vec", "scn", "lmo", "pms", "nap"}), frozenset({"fr", "oc", "wa"}), frozenset({"en", "sco"}),
)  # fmt: skip
_NAMED = re.compile(
    r"\b(?:translat\w*|afrikaans|arabic|bengali|bulgarian|catalan|chinese|croatian|czech|danish|dutch|english|esperanto"
    r"|estonian|finnish|french|german|greek|gujarati|hebrew|hindi|hungarian|icelandic|indonesian|irish|italian|japanese"
    r"|korean|latin|latvian|lithuanian|malay|mandarin|marathi|nepali|norwegian|persian|farsi|polish|portuguese|punjabi"
    r"|romanian|russian|serbian|slovak|slovene|slovenian|spanish|swahili|swedish|tagalog|tamil|telugu|thai|turkish"
    r"|ukrainian|urdu|vietnamese|welsh|yiddish|zulu|language|sprache|langue|idioma|lingua|язык\w*|语言|言語)\b",
    re.IGNORECASE,
)
_SCRIPTS = (
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TAMIL", "TELUGU", "GUJARATI",
    "GURMUKHI", "THAI", "HANGUL", "HIRAGANA", "KATAKANA", "CJK", "GEORGIAN", "ARMENIAN", "ETHIOPIC", "KHMER", "LAO",
    "MYANMAR", "SINHALA", "KANNADA", "MALAYALAM",
)  # fmt: skip
_ASIAN = frozenset({"HIRAGANA", "KATAKANA", "CJK"})
# What is no language: code, formulas, addresses, tags, JSON's own marks.
_FOREIGN = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]{1,200}\$|\\[a-zA-Z]+|https?://\S+"
    r"|(?<!\S)[^\s@]+@\S+|<[^<>\n]{1,80}>",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def plain(text: str) -> str:
    """The text without code, formulas and addresses."""
    return _FOREIGN.sub(" ", text)


def script_of(text: str) -> str | None:
    """The script that three in four letters are of, as Unicode names it (Japanese counts as CJK); None when none is."""
    if text.isascii():
        return "LATIN" if sum(map(str.isalpha, text)) >= _LETTERS_OF_A_SCRIPT else None
    letters = Counter(_script(char) for char in text if char.isalpha())
    total = sum(letters.values())
    if total < _LETTERS_OF_A_SCRIPT:
        return None
    script, count = letters.most_common(1)[0]
    return script if count >= 0.75 * total else None


@cache
def _script(char: str) -> str:
    name = unicodedata.name(char, "").replace("FULLWIDTH ", "").replace("HALFWIDTH ", "")
    script = next((script for script in _SCRIPTS if name.startswith(script)), "OTHER")
    return "CJK" if script in _ASIAN else script


def language_of(text: str) -> tuple[str, float] | None:
    """(ISO 639 code, probability) of a text; None when it has too few words to tell, or is no language."""
    said = " ".join(_WORD.findall(plain(text)))
    wide = script_of(said) not in (None, "LATIN", "CYRILLIC", "GREEK")
    letters = sum(char.isalpha() for char in said)
    if letters < (_LETTERS_OF_A_SCRIPT if wide else _LETTERS):
        return None
    tokens = said.lower().split()
    english = sum(token in _ENGLISH for token in tokens) >= 0.3 * len(tokens)
    if len(tokens) >= 5 and english and not _ENGLISH_ALONE.isdisjoint(tokens):
        return "en", 1.0
    code, probability = _identifier().classify(said)
    return None if code in ("zxx", "und") else (str(code), float(probability))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = set(identifier.nb_classes)
    # Of its 139 languages those that models are asked in; among more, lists of names pass for one of the rarest.
    identifier.set_languages([code for code in _LANGUAGES if code in known])
    return identifier


def other_language(question: str, answer: str, wanted: str | None = None) -> str | None:
    """In which way an answer is in another language than its question, or than `wanted`; None when it is not.

    `wanted` is an ISO 639 code. Without it, a question that names a language ("in French", "translate") is taken to
    ask for it, and nothing is said; neither is it when a text is too short, or the guess at either is unsure.
    """
    if wanted is None and _NAMED.search(question):
        return None
    ours, theirs = plain(question), plain(answer)
    if wanted is None:
        asked, said = script_of(ours), script_of(theirs)
        if asked is not None and said is not None and asked != said:
            return f"the question is in {asked.title()} script, the answer in {said.title()}"
    found = language_of(theirs)
    if found is None or found[1] < CONFIDENT:
        return None
    expected = (wanted, 1.0) if wanted else language_of(ours)
    if expected is None or expected[1] < CONFIDENT or _same(expected[0], found[0]):
        return None
    return f"{found[0]} instead of {expected[0]}"


def _same(one: str, other: str) -> bool:
    return one == other or any(one in alike and other in alike for alike in _ALIKE)
