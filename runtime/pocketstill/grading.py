"""Extracts the answer from a completion, and compares it with the gold answer, by kind of answer.

The kinds and the cleansing of raw answers follow Kojima et al. 2022, "Large Language Models are Zero-Shot
Reasoners" (arXiv 2205.11916); the `rationale --> answer` form is that of Fine-tune-CoT, Ho et al. 2023
(arXiv 2212.10071). No function here raises on any string: a completion is whatever a model felt like saying.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from decimal import Context, Decimal
from typing import Any, Literal, get_args

Kind = Literal["number", "choice", "yes_no", "text", "json"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Where the answer starts. Kojima et al. put hints into the phrase, as in "the answer (arabic numerals) is".
_MARKER = re.compile(
    r"(?P<format>(?:^|(?<=\s))-->|(?:^|\n)[ *]{0,4}(?:final )?answer[ *]{0,4}:\*{0,2}|(?:^|\n)####(?!#))"
    r"|\bthe (?:final )?answer(?: \([^()\n]{1,40}\))? is(?![a-z])",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w")
_SPECIAL = re.compile(r"<\|[a-z_]{1,32}\|>")
_DECIMAL = re.compile(r"(?:(?<![0-9A-Za-z)])-)?[0-9]+(?:\.[0-9]+)?")
# A mixed number, a fraction, or a decimal; a date such as 01/22/2020 is no fraction, and 5-3 holds no -3.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)])-)?"
    r"(?:(?<![0-9/.])(?:[0-9]+ )?[0-9]+/[0-9]+(?![/0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_PAREN_LETTER = re.compile(r"\(([A-Za-z])\)")
_LONE_LETTER = re.compile(r"(?<![A-Za-z0-9'])([A-HJ])(?![A-Za-z0-9'])")
_YES_NO = re.compile(r"(?<![a-z])(yes|no)(?![a-z])", re.IGNORECASE)
_NOISE = re.compile(r"[\"'“”‘’`.\s]+")
_CONTEXT = Context(prec=60, traps=[])
_TOLERANCE = Decimal("1e-6")


def split_completion(text: str) -> tuple[str, str]:
    """(rationale, answer text), cut at the last marker; without one the whole text is the answer.

    Markers: ` --> `, `Answer: ` at the start of a line, `#### ` likewise, and "the answer is".
    """
    text = _SPECIAL.sub("", text)
    marker = _last_marker(text)
    if marker is None:
        return "", text.strip()
    return text[: marker.start()].strip(), text[marker.end() :].lstrip(" :").strip()


def _last_marker(text: str) -> re.Match[str] | None:
    """A phrase that nothing follows does not count: there the completion was cut off."""
    found = [m for m in _MARKER.finditer(text) if m.group("format") is not None or _WORD.search(text, m.end())]
    return found[-1] if found else None


def extract(completion: str, kind: Kind) -> str | None:
    """The answer that a completion gives, cleaned; None when it gives none of that kind.

    Takes a whole completion (`split_completion` says where its answer starts) as well as the raw text that
    answered an answer request, which is read as Kojima et al. read it.

    - number: the first number, thousands' commas dropped. Fractions are read after a marker of format (`-->`,
      `Answer:`, `####`) alone: elsewhere, as in the published figures, 9/10 reads 9.
    - choice: the first letter in brackets, else the first that stands alone; in upper case.
    - yes_no: the first of the two words, in lower case.
    - text: the text without the quotes, dots and blanks around it.
    - json: the first JSON value, as it was written.
    """
    if kind == "json":
        return _extract_json(completion)
    text = _SPECIAL.sub("", completion)
    marker = _last_marker(text)
    if marker is None:
        return _clean(text, kind, explicit=False)
    return _clean(text[marker.end() :].lstrip(" :"), kind, explicit=marker.group("format") is not None)


def _clean(answer: str, kind: Kind, explicit: bool) -> str | None:
    if kind == "number":
        match = (_NUMBER if explicit else _DECIMAL).search(_plain_digits(answer))
        return match.group() if match else None
    if kind == "choice":
        found = _PAREN_LETTER.search(answer) or _LONE_LETTER.search(answer)
        if found:
            return found.group(1).upper()
        bare = answer.strip(" .:\"'\n")
        # "b" and "CE" are letters, "bus" and "I" are not.
        return bare[0].upper() if re.fullmatch(r"[a-h]|[A-H]{2}", bare) else None
    if kind == "yes_no":
        word = _YES_NO.search(answer)
        return word.group(1).lower() if word else None
    return answer.strip(" \t\r\n\"'“”‘’`.*:") or None


def _plain_digits(text: str) -> str:
    return _COMMA.sub("", text.replace("−", "-").replace("$", ""))


def _extract_json(completion: str) -> str | None:
    text = _SPECIAL.sub("", completion)
    # A marker may stand inside of a JSON string: from the last marker back, the first rest that is JSON wins.
    starts = [match.end() for match in _MARKER.finditer(text)]
    for start in [*reversed(starts), 0]:
        rest = text[start:].strip()
        fenced = re.match(r"```(?:json)?\s*(.*?)\s*```", rest, re.DOTALL)
        rest = fenced.group(1) if fenced else rest
        if _parse_json(rest) is not _INVALID:
            return rest
    decoder = json.JSONDecoder(parse_constant=_refuse)
    text = text[starts[0] :] if starts else text
    # Bounded, so that a flood of brackets costs no quadratic time.
    for match in list(re.finditer(r"[\[{]", text))[:64]:
        try:
            _, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        return text[match.start() : end]
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_INVALID = object()


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _INVALID


def equal(prediction: str | None, gold: str, kind: Kind) -> bool:
    """Whether an extracted answer equals the gold answer.

    - number: by value, within 1e-6 of the gold's own size (1,000 = 1000.0, 1/2 = 0.5).
    - choice, yes_no: without regard to case.
    - text: likewise, and without regard to quotes, dots and blanks.
    - json: by parsed value, so that the order of keys does not matter and 7 = 7.0, while true is not 1.

    None equals nothing.
    """
    if prediction is None:
        return False
    if kind == "number":
        a, b = _decimal(prediction), _decimal(gold)
        if a is None or b is None:
            return False
        allowed = _CONTEXT.multiply(_TOLERANCE, max(abs(b), Decimal(1)))
        return bool(_CONTEXT.abs(_CONTEXT.subtract(a, b)) <= allowed)
    if kind == "json":
        a_value, b_value = _parse_json(prediction), _parse_json(gold)
        if a_value is _INVALID or b_value is _INVALID:
            return False
        try:
            return _same_json(a_value, b_value)
        except RecursionError:
            return False
    return _folded(prediction) == _folded(gold)


def _folded(text: str) -> str:
    return _NOISE.sub("", text).casefold()


def _decimal(text: str) -> Decimal | None:
    match = _NUMBER.search(_plain_digits(text))
    if match is None:
        return None
    found = match.group()
    negative = found.startswith("-")
    whole, _, rest = found.lstrip("-").rpartition(" ")
    numerator, _, denominator = rest.partition("/")
    value = _CONTEXT.create_decimal(numerator)
    if denominator:
        value = _CONTEXT.divide(value, _CONTEXT.create_decimal(denominator))
    if whole:
        value = _CONTEXT.add(_CONTEXT.create_decimal(whole), value)
    return None if not value.is_finite() else _CONTEXT.minus(value) if negative else value


def _same_json(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        try:
            return a == b or math.isclose(a, b, rel_tol=1e-9)
        except OverflowError:
            return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same_json(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def token_f1(prediction: str | None, gold: str) -> float:
    """Token F1 in 0..1: the overlap of two bags of words, as SQuAD defines it.

    Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (arXiv 1606.05250):
    lower case, without punctuation and the articles a, an, the.
    """
    ours, theirs = _words(prediction or ""), _words(gold)
    if not ours or not theirs:
        return float(ours == theirs and prediction is not None)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _words(text: str) -> list[str]:
    text = re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())
    return re.sub(r"\b(?:a|an|the)\b", " ", text).split()


# A yes/no question about one of these is answered by a statement that names it or its opposite.
_OPPOSITES = {"heads": "tails", "true": "false", "on": "off", "open": "closed"}
_OPPOSITES |= {opposite: word for word, opposite in _OPPOSITES.items()}
_CLAUSE = re.compile(r"[,;:]|\b(?:so|but|and)\b")
_NEGATION = re.compile(r"\b(?:not|never|no longer|cannot)\b|n't\b")


def rationale_leads_to(completion: str, kind: Kind, question: str = "") -> bool | None:
    """Whether the rationale's own last statement states the answer that the completion then gives.

    A statement is a sentence or a line.

    - number: its last number equals the answer (the last statement that has a number is taken).
    - text: it contains the answer, blanks and dots aside.
    - choice: its last letter in brackets, the last option text of `question` in it, or its last lone letter.
    - yes_no: the word, else what it says of the state that `question` asks for, else its negation.
    - json: every string and number of the answer appears in the rationale.

    None when there is no rationale or no answer, or when this cannot be told.
    """
    rationale, _ = split_completion(completion)
    answer = extract(completion, kind)
    statements = [s for s in re.split(r"\n+|(?<=[.!?])\s+", rationale) if re.search(r"\w", s)]
    if answer is None or not statements:
        return None
    if kind == "number":
        for statement in reversed(statements):
            if numbers := _NUMBER.findall(_plain_digits(statement)):
                return equal(numbers[-1], answer, "number")
        return None
    if kind == "text":
        return _letters(answer) in _letters(statements[-1])
    if kind == "json":
        return _leaves_in(_parse_json(answer), rationale.casefold())
    said = _choice_said(statements[-1], question) if kind == "choice" else _polarity(statements[-1], question)
    return None if said is None else said == answer


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _leaves_in(value: Any, text: str) -> bool:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).casefold() not in text:
            return False
    return True


def _choice_said(statement: str, question: str) -> str | None:
    letters = [m.group(1).upper() for m in _PAREN_LETTER.finditer(statement)]
    if letters:
        return letters[-1]
    best: tuple[int, str] | None = None
    for letter, option in re.findall(r"\(([A-Z])\) ([^()]+)", question):
        at = statement.casefold().rfind(option.strip(" .\n").casefold() or "\0")
        if at >= 0 and (best is None or at > best[0]):
            best = at, letter
    if best:
        return best[1]
    lone = _LONE_LETTER.findall(statement)
    return lone[-1] if lone else None


def _polarity(statement: str, question: str) -> str | None:
    statement = statement.casefold()
    if words := _YES_NO.findall(statement):
        return str(words[-1])
    asked = question.casefold().partition("?")[0].rpartition(".")[2]
    for state, opposite in _OPPOSITES.items():
        if re.search(rf"\b{state}\b", asked):
            # What another clause denies ("Ana does not flip it, so it is tails up") says nothing of the state.
            clauses = [part for part in _CLAUSE.split(statement) if re.search(rf"\b(?:{state}|{opposite})\b", part)]
            if clauses:
                last = re.findall(rf"\b(?:{state}|{opposite})\b", clauses[-1])[-1]
                return "yes" if (last == state) != bool(_NEGATION.search(clauses[-1])) else "no"
    if _NEGATION.search(statement):
        return "no"
    return "yes" if re.search(r"\bstill\b", statement) else None
