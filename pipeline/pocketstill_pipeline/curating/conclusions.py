"""Whether a rationale comes to another answer than the one that is given behind it.

`pocketstill.grading.rationale_leads_to` is a figure over many answers, and may err on single ones. A filter throws
away what was paid for, so it speaks only where the rationale's last conclusion names one answer, and another one.
"""

from __future__ import annotations

import re

from pocketstill import grading

_STATEMENTS = re.compile(r"\n+|(?<=[.!?])\s+")
_NUMBERS = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*)?\.?\d+(?:/\d+)?")
_CONCLUDES = re.compile(
    r"^\W*(?:so|therefore|thus|hence|in total|in all|altogether|at the end|in the end|this means|that means"
    r"|the (?:final )?answer)\b",
    re.IGNORECASE,
)
_NEGATION = re.compile(r"\b(?:not|never|no longer|cannot|neither|nor|eliminat\w*|rule[ds]? out)\b|n['’]t\b", re.I)
_CLAUSE = re.compile(r"[,;:]|\b(?:so|and|but|then|which means|therefore)\b", re.I)
_OPTION = re.compile(r"\(([A-Z])\)\s*([^()]+)")
# "A month ago" names no option.
_LETTER = re.compile(r"\(([A-J])\)|(?<![\w'’])([A-J])(?=[).:,]|$| (?:or|and) [A-J]\b)")
_OPPOSITES = (("heads", "tails"), ("true", "false"), ("on", "off"), ("open", "closed"))
_UNITS = dict(
    zip(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split(),
        range(20),
        strict=True,
    )
)
_TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
_SPELLED = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[ -]({'|'.join(list(_UNITS)[1:10])}))?|({'|'.join(_UNITS)}))\b", re.I
)


def leads_elsewhere(rationale: str, answer: str, kind: grading.Kind, question: str = "") -> str | None:
    """In words, where the rationale's last conclusion leads when that is not `answer`; None when it does or may.

    - number: the answer stands nowhere in the rationale, or its last statement draws a conclusion ("so", "therefore")
      without it. Spelled numbers count, and so does the hundredfold (0.5 dollars, 50 cents).
    - choice: the last statement names one option, by letter or by text, another one, denies nothing, and either draws
      a conclusion or is preceded by nothing about the answer.
    - yes_no: the last statement says the opposite of what is asked, in a clause of its own.
    - text: a short answer whose letters are not in the last statement, which either draws a conclusion or is preceded
      by nothing that states the answer.
    """
    statements = [part for part in _STATEMENTS.split(rationale) if re.search(r"\w", part)]
    if not statements:
        return None
    if kind == "number":
        return _number(statements, answer)
    last = statements[-1]
    if kind == "choice":
        option = _option(last, question)
        if option is None or option == answer.upper():
            return None
        if not _CONCLUDES.search(last) and answer.upper() in _named(rationale, question):
            return None
        return f"it ends on {option}, the answer is {answer}"
    if kind == "yes_no":
        said = _yes_no(last, question)
        return f"it ends on {said}, the answer is {answer}" if said and said != answer.lower() else None
    if kind == "text" and len(answer.split()) <= 5 and _letters(answer) not in _letters(last):
        stated = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE)
        if not _CONCLUDES.search(last) and any(map(stated.search, statements)):
            return None
        return f"it ends on {last[-80:]!r}, the answer is {answer!r}"
    return None


def _number(statements: list[str], answer: str) -> str | None:
    with_numbers = [(part, found) for part in statements if (found := _numbers(part))]
    if not with_numbers:
        return None
    last, numbers = with_numbers[-1]
    if _among(answer, numbers):
        return None
    drawn = last == statements[-1] and _CONCLUDES.search(last)
    if not drawn and any(_among(answer, found) for _, found in with_numbers):
        return None
    return f"it ends on {numbers[-1]}, the answer is {answer}"


def _numbers(text: str) -> list[str]:
    return _NUMBERS.findall(_SPELLED.sub(_digits, text))


def _digits(spelled: re.Match[str]) -> str:
    tens, unit, small = (word.lower() if word else "" for word in spelled.groups())
    return str(_TENS.get(tens, 0) + _UNITS.get(unit, 0) + _UNITS.get(small, 0))


def _among(answer: str, numbers: list[str]) -> bool:
    return any(
        grading.equal(number, answer, "number")
        or grading.equal(_hundredfold(number), answer, "number")
        or grading.equal(_hundredfold(answer), number, "number")
        for number in numbers
    )


def _hundredfold(number: str) -> str:
    try:
        return repr(float(number.replace(",", "")) * 100)
    except ValueError:
        return number


def _option(statement: str, question: str) -> str | None:
    """The one option that a statement names; None when it names none, several, or denies something."""
    if _NEGATION.search(statement):
        return None
    named = _named(statement, question)
    return named.pop() if len(named) == 1 else None


def _named(text: str, question: str) -> set[str]:
    """The options of a question that a text names, by letter or by what they say."""
    named = {first or second for first, second in _LETTER.findall(text)}
    low = text.casefold()
    listed = _OPTION.findall(question)
    for letter, option in listed:
        words = option.strip(" .\n").casefold()
        if words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", low):
            named.add(letter)
    return {letter for letter in named if not listed or letter in {known for known, _ in listed}}


def _yes_no(statement: str, question: str) -> str | None:
    low = statement.casefold()
    words = re.findall(r"(?<![a-z])(yes|no)(?![a-z])(?! longer)", low)
    if words:
        return str(words[-1]) if len(set(words)) == 1 else None
    asked = question.casefold().partition("?")[0].rpartition(".")[2]
    for pair in _OPPOSITES:
        for state, opposite in (pair, pair[::-1]):
            if not re.search(rf"\b{state}\b", asked) or re.search(rf"\b{opposite}\b", asked):
                continue
            clauses = [part for part in _CLAUSE.split(low) if re.search(rf"\b(?:{state}|{opposite})\b", part)]
            if not clauses or re.search(rf"\b{state}\b.*\b{opposite}\b|\b{opposite}\b.*\b{state}\b", clauses[-1]):
                return None
            stated = re.search(rf"\b{state}\b", clauses[-1]) is not None
            return "yes" if stated != bool(_NEGATION.search(clauses[-1])) else "no"
    return None


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()
