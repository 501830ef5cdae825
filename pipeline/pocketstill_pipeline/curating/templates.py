"""The template of a question: what is left when numbers, names and quoted things are taken out of it.

Two word problems that differ in "Katie" and "85" alone are one problem to a student that was trained on the
other. Published splits do not look for it: those of MultiArith share most of their templates.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from pocketstill.errors import UserError
from pocketstill_pipeline.duplicates import NearDuplicates, jaccard, shingles
from pocketstill_pipeline.example import Split
from pocketstill_pipeline.problems.base import _FIRST_NAMES

# Two masked questions of at least this Jaccard similarity (of triples of words) are one template.
NEAR = 0.8

_NUMBER_WORDS = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million dozen
""".split()
_DATES = """
January February March April May June July August September October November December Jan Feb Mar Apr Jun Jul Aug Sep
Sept Oct Nov Dec Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""".split()
_TITLES = "Mr Mrs Ms Dr Miss Sir Prof Uncle Aunt Grandma Grandpa".split()
# What begins a sentence with a capital and is no name, even where a verb follows: "How did", "She had", "Each has".
_STARTERS = frozenset(
    """
a about after all also although among an and another any are as assume at because before being below both but by can
compute consider could day describe did do does during each either every everyone evaluate explain express few find for
four from given half has have he her here him his how however i if in initially into is it its last later let list many
most mother mom much my next night no nobody none note now of often on once one only or other our out over people
simplify since so some someone solve students such suppose take teacher than that the their them then there these they
thirty this those three through to today together tomorrow twice two under until up use usually was we were what
whatever when whenever where whether which while who whoever whose why will with within without write yesterday
yes you your
""".split()
)
_NAMED_VERBS = frozenset(
    """
adds answered and arrived ate baked bakes borrowed bought brought builds buys called can collected collects could counts
cut decided did does drew drives earned earns eats feeds filled finds finished flips forgot found gave gets gives goes
got grew had has invited is keeps left likes lost made makes needed needs opened ordered owns packed paid pays picked
picks placed planned planted played plays purchased put puts ran read reads received runs saved saves saw scored sells
set sold spends spent started starts takes thinks thought took uses used visits wakes walked wants wanted was went will
won wore works worked writes wrote
""".split()
)
_AFTER_PLURALS = frozenset({"and", "can", "did", "had", "set", "put", "cut", "read", "are", "were"})
_NAMES = frozenset(_FIRST_NAMES)
_QUOTED = re.compile(r'"[^"\n]{1,200}"|“[^”\n]{1,200}”|‘[^’\n]{1,200}’|(?<!\w)\'[^\'\n]{1,200}\'(?!\w)')
_DATE = re.compile(rf"\b(?:{'|'.join(_DATES)})\b\.?")
_NUMBER = re.compile(
    r"[$€£]?\d[\d,./:]*\d(?:st|nd|rd|th)?\b%?|[$€£]?\d(?:st|nd|rd|th)?\b%?|[$€£]?\d+%?"
    rf"|\b(?:{'|'.join(_NUMBER_WORDS)})\b(?:[ -](?:{'|'.join(_NUMBER_WORDS)})\b)*",
    re.IGNORECASE,
)
# Options change within a template, and what all lists of them share would make templates alike that are not.
_OPTIONS = re.compile(
    r"(?:(?:Answer Choices|Options|Choices)\s*(?::\s*)?)?\(A\)\s.*\(B\)\s.*", re.IGNORECASE | re.DOTALL
)
# He for she goes with the name that was taken out.
_PRONOUN = re.compile(r"\b(?:he|she|his|hers|her|him|himself|herself)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|<[a-z]+>")
_STARTS = re.compile(r"(?:^|(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)[.!?:]|\n)[\s\"“(]*$")
_LEADING = re.compile(r"\s*\Z")
_POSSESSIVE = re.compile(r"['’]s?$")
_FLAT = re.compile(r"<[a-z]+>|[^\W_]+")
_RUN = re.compile(r"(<[a-z]+>)(?: \1)+")


@lru_cache(maxsize=1 << 16)
def mask(text: str) -> str:
    """The text in lower case, with <quote>, <date>, <number>, <pronoun>, <name> and <options> for what changes.

    A name is a capitalised word that starts no sentence, one of the first names of `problems.base`, a word that
    is a name elsewhere in the text, or one that starts a sentence as only a name does ("Paige and her", "Ned bought").
    Punctuation is dropped, and a run of equal masks ("Mrs. Jane Smith") is one.
    """
    masked = _QUOTED.sub(" <quote> ", _OPTIONS.sub(" <options>", text))
    masked = _DATE.sub(" <date> ", masked)
    masked = _NUMBER.sub(" <number> ", masked)
    masked = _mask_names(masked)
    masked = _PRONOUN.sub("<pronoun>", masked)
    return _RUN.sub(r"\1", " ".join(_FLAT.findall(masked.lower())))


def _mask_names(text: str) -> str:
    words = list(_WORD.finditer(text))
    capitals = [index for index, word in enumerate(words) if word.group()[0].isupper()]
    names = {stem for index in capitals if (stem := _certain_name(text, words, index)) is not None}
    pieces, end = [], 0
    for index in capitals:
        word = words[index]
        if _stem(word.group()) in names or _likely_name(text, words, index):
            pieces += [text[end : word.start()], "<name>"]
            end = word.end()
    return "".join([*pieces, text[end:]])


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return _POSSESSIVE.sub("", word)


def _certain_name(text: str, words: list[re.Match[str]], index: int) -> str | None:
    word = _stem(words[index].group())
    if len(word) < 2 or word.isupper():
        return None
    if _starts_sentence(text, words[index].start()):
        return word if word in _NAMES and word.lower() not in _STARTERS and word != "Will" else None
    return word if word.lower() not in _STARTERS else None


def _likely_name(text: str, words: list[re.Match[str]], index: int) -> bool:
    """Whether a capitalised word that starts a sentence does so as a name does."""
    word = _stem(words[index].group())
    if word.lower() in _STARTERS or len(word) < 2 or word.isupper():
        # "Will" is a name where a verb follows it, and no name before "she be".
        return word == "Will" and _next(words, index) in _NAMED_VERBS
    if not _starts_sentence(text, words[index].start()):
        return True
    if word in _TITLES or words[index].group() != word:
        return True
    follows = _next(words, index)
    if word.endswith("s"):
        return follows in _NAMED_VERBS - _AFTER_PLURALS
    return follows in _NAMED_VERBS or follows.endswith("ed")


def _next(words: list[re.Match[str]], index: int) -> str:
    return words[index + 1].group().lower() if index + 1 < len(words) else ""


def _starts_sentence(text: str, at: int) -> bool:
    return _STARTS.search(text[max(0, at - 6) : at]) is not None or _LEADING.match(text, 0, at) is not None


def template_groups(texts: Sequence[str], near: float = NEAR) -> list[int]:
    """The template of each text, as the index of the first text of its group.

    Texts are of one group when their masked forms are equal or reach a Jaccard similarity of `near`, directly or
    by way of others: so no text of one group is that near to any of another.
    """
    firsts: dict[str, int] = {}
    masks = [mask(text) for text in texts]
    for index, masked in enumerate(masks):
        firsts.setdefault(masked, index)
    parents = {index: index for index in firsts.values()}

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    if near < 1:
        seen = NearDuplicates(near)
        grams: dict[int, frozenset[int]] = {}
        for masked, index in firsts.items():
            grams[index] = shingles(masked)
            for name, theirs in seen.alike(grams[index]):
                other, mine = root(int(name)), root(index)
                if other != mine and jaccard(theirs, grams[index]) >= near:
                    parents[max(other, mine)] = min(other, mine)
            seen.remember(str(index), masked)
    return [root(firsts[masked]) for masked in masks]


def split_by_template(texts: Sequence[str], heldout: int, seed: int | str, near: float = NEAR) -> list[Split]:
    """ "train" or "heldout" for each text, whole templates at a time, so that no template is on both sides.

    Templates are drawn in an order that `seed` sets, each taken while it fits into the `heldout` texts wanted;
    what comes out is at most that many, and at least half of them.

    Raises:
        UserError: the templates are so few or so large that not even half of `heldout` can be held out.
    """
    if heldout <= 0:
        return ["train"] * len(texts)
    return split_groups(template_groups(texts, near), heldout, seed)


def split_groups(groups: Sequence[int], heldout: int, seed: int | str) -> list[Split]:
    """As `split_by_template`, for texts whose templates are known."""
    sizes = Counter(groups)
    order = sorted(sizes)
    random.Random(f"{seed}/templates").shuffle(order)
    chosen: set[int] = set()
    room = heldout
    for group in order:
        if sizes[group] <= room and len(chosen) < len(order) - 1:
            chosen.add(group)
            room -= sizes[group]
    if heldout - room < (heldout + 1) // 2:
        largest = max(sizes.values(), default=0)
        raise UserError(
            f"the {len(groups)} questions have {len(sizes)} templates, the largest of {largest}: no {heldout} of them "
            'can be held out by template; lower `heldout`, or leave `split = "template"` out'
        )
    return ["heldout" if group in chosen else "train" for group in groups]
