"""What a text looks like from outside: whether it stops in the middle, goes in circles, or refuses.

Each of these is a rule of thumb over the words; what they catch and miss on real traces stands in docs/curation.md.
"""

from __future__ import annotations

import re
from collections import Counter

_ENDS = re.compile(r"[.!?。！？…‽؟۔।॥][\"'”’)\]}*_`»]*$|[☀-➿\U0001F000-\U0001FAFF][\uFE0F\u200D]*$")
# "C++" and "A+" are words; what stands within marks that are closed, and an address, ends there.
_OPEN_END = re.compile(r"[,;:(\[{*×÷=<&\\]$|(?<![^\W\d_])(?<![^\W\d_]\+)[+/]$|(?<=[\w)])\s*[-–—]$")
_CLOSED = re.compile(r"(?<![\w*`])(\*{1,3}|`)(?=\S)[^\n]*\S\1$|(?<!\$)\$[^$\n]*\\[^$\n]*[^$\n]\$$|https?://\S+$")
# No English sentence ends in one of these, a heading or a line of an answer neither.
_HANGING = frozenset(
    """
a an the and or but nor because although whereas if unless of to from with without into onto between per than that which
who whose is are was were be been being has have had will would could should may might must can cannot does do did his
her their its our your my this these those each every another as at by for i we they he she it you there so then
therefore since while until when where what how not no
""".split()
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？؟۔।॥])[\"'”’)]*\s+|\n+")
# "3 boxes x 4 = 12 apples" is whole without a full stop.
_EQUATION = re.compile(r"=\s*[$€£]?[\d.,]*\d%?(?: [^\W\d_]+){0,4}\W*$")
_LIST_LINE = re.compile(r"^\s*(?:[-*•#|>]|\(?[\dA-Za-z]{1,3}[.):])")


def words(text: str) -> list[str]:
    """The words of a text in lower case, numbers among them."""
    return [word.lower() for word in _WORD.findall(text)]


def stops_midway(text: str, answer: str = "") -> str | None:
    """Why a text seems to have been cut off, in words; None when it seems whole, or ends on its `answer`.

    Cut off is a text with an open block of code, one that ends on an operator, an opening bracket, a comma or a
    word that no sentence ends in, and prose whose sentences all end in a full stop or its like, save the last.
    """
    text = text.rstrip()
    if not text:
        return None
    if text.count("```") % 2:
        return "a block of code is open"
    if _ENDS.search(text) or text.endswith("```") or _CLOSED.search(text[-400:]):
        return None
    last_words, wanted = words(text[-200:]), words(answer)
    if wanted and last_words[-len(wanted) :] == wanted:
        return None
    if _OPEN_END.search(text):
        return f"it ends on {text[-1]!r}"
    if last_words and last_words[-1] in _HANGING and text[-1].isalpha() and text[-1].islower():
        return f"it ends on {last_words[-1]!r}"
    pieces = [piece for piece in _SENTENCE_END.split(text) if piece and piece.strip()]
    tail = pieces[-1]
    if "(" in tail and tail.rfind("(") > tail.rfind(")"):
        return "a bracket is open"
    if len(words(tail)) < 4 or _LIST_LINE.match(tail) or _EQUATION.search(tail):
        return None
    before = [piece for piece in pieces[:-1] if len(words(piece)) >= 4]
    ended = sum(bool(_ENDS.search(piece.rstrip())) for piece in before)
    if len(before) >= 2 and ended >= 0.8 * len(before):
        return "its last sentence has no end"
    return None


def loops(text: str, times: int) -> str | None:
    """The words that a text repeats `times` times or more in a row, or the line that fills it; None when none.

    What models fall into when they do not stop: the same words over and over (Holtzman et al. 2020, "The Curious
    Case of Neural Text Degeneration", arXiv 1904.09751, figure 4). Runs of fewer than 8 words in all do not count
    ("ha ha ha ha"), and neither does a pattern whose numbers or names go on changing.
    """
    said = words(text)
    for period in range(1, min(60, len(said) // times) + 1):
        run = 0
        for index in range(period, len(said)):
            run = run + 1 if said[index] == said[index - period] else 0
            if run >= period * (times - 1) and run + period >= 8:
                return " ".join(said[index - period + 1 : index + 1])[:80]
    lines = Counter(line.strip().lower() for line in text.splitlines() if len(words(line)) >= 3)
    if lines.total() >= 2 * times:
        line, count = max(lines.items(), key=lambda pair: (pair[1], pair[0]))
        if count >= max(times, lines.total() // 2):
            return line[:80]
    return None


_GREETING = re.compile(
    r"^\W*(?:(?:hello|hi|hey|sure|certainly|okay|ok|well|no)\b\W+|thank(?:s| you)[^.!\n]{0,60}[.!]\s*)+", re.IGNORECASE
)


def _one_of(phrases: str) -> str:
    """A pattern for any of the lines; an apostrophe may be typed as ' or ’ or be left out."""
    lines = (line.strip().replace("'", "['’]?") for line in phrases.strip().splitlines())
    return "(?:" + "|".join(lines) + ")"


_SORRY = _one_of(
    r"""
    (?:i'm|i am|we're|we are) (?:(?:very|so|really|truly) )?(?:sorry|afraid)
    (?:my )?apologies
    i apologi[sz]e
    sorry|unfortunately|regrettably
    """
)
_BUT = rf"(?:{_SORRY}\W+(?:but\W+)?)"
_UNABLE = (
    r"(?:i|we)(?: am| are|['’]?m|['’]re)?(?: just| simply| really)? "
    + _one_of(
        r"""
        can't|cannot|can not|won't|will not|could not|couldn't
        (?:must|have to) (?:respectfully |politely )?decline
        decline|refuse
        not able|unable|not allowed|not permitted|not comfortable|not programmed|not going
        (?:don't|do not) feel comfortable
        """
    )
    + r"(?: and (?:will not|won['’]t))?"
)
# What a service does for those who ask; "I cannot help it", "give up" and "create 5 groups" are something else.
_SERVICE = r"(?: to|[ -]in good conscience)?(?: \w+ly)? " + _one_of(
    r"""
    help(?!\W+(?:it|but)\b)|assist|comply|provide|fulfil+|answer(?! for\b)(?:ing)?|writing|respond|engage|support
    participate|discuss|share|give(?! up)|offer|generate|create(?! \d)|write|produce|complete|do (?:that|this|so)
    continue|browse|open|process|advise|recommend|speculate|comment|say|predict
    access (?:the (?:internet|web|document|file|link)|real|your|external|files|links)
    """
)
_AN_AI = (
    r"(?:as|i['’]?m|i am|being|(?:since|because) i['’]?m) (?:just |only |merely )?an? "
    r"(?:ai|artificial intelligence|(?:large )?language model|chatbot|text-based)\b"
)
_LACK = _one_of(r"can't|cannot|can not|don't|do not|unable|not able|won't|lack|no (?:access|ability|opinion|personal)")
_LACKS = rf"\b{_LACK}\b"
_RULES = r"(?:guidelines|polic(?:y|ies)|programming|principles|rules)"
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^{_BUT}?(?:(?:but|that|however|to say)\W+)*{_UNABLE}{_SERVICE}\b",
        rf"^{_BUT}?{_AN_AI}[^.!?\n]{{0,80}}(?:[.]\s)?[^.!?\n]{{0,40}}{_LACKS}",
        rf"^{_BUT}(?:this|that|it)(?: is|['’]s) (?:not )?(?:something i|against|outside)",
        rf"^{_BUT}?(?:(?:this|that|your|the) (?:request|question|prompt|content)|it) [^.!?\n]{{0,40}}"
        rf"\b(?:against|violates?|goes against) (?:my|our|openai['’]?s?) (?:content |usage |use )*{_RULES}",
        rf"^{_BUT}?i (?:must|have to|need to|will have to) (?:respectfully |politely )?(?:decline|refuse)"
        r"(?: to\b| (?:this|that|your)\b|\W*[.;,]|$)",
        rf"^{_BUT}i (?:don['’]?t|do not) have (?:access|the ability|enough (?:context|information) to)\b",
        r"^(?:i['’]?d|i would) (?:rather|prefer) not (?:to )?(?:answer|say|discuss|help|do (?:that|this)|write)\b",
        rf"^(?:my|our) {_RULES} (?:do|does|will|would)(?: not|n['’]t) (?:allow|permit|let)\b",
        rf"^{_BUT}[^.!?\n]{{0,60}}\b(?:can['’]?t|cannot|won['’]?t|unable to|not able to) "
        r"(?:help|assist|comply|do that|fulfil+|answer that)\b",
    )
)


def refuses(text: str) -> str | None:
    """The words with which a reply says that it will not answer, in English; None when it does not.

    Only how a reply begins counts (300 characters behind a greeting): what a story's people cannot do, or an
    apology that was asked for, stands elsewhere or says something else.
    """
    start = _GREETING.sub("", text.strip().lstrip("\"'“*_ ")[:400])[:300]
    for pattern in _REFUSALS:
        if found := pattern.search(start):
            return found.group().strip()[:100]
    return None
