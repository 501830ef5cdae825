from __future__ import annotations

import io
from pathlib import Path

import pytest

from pocketstill.chat import chat
from pocketstill.errors import UserError
from pocketstill.model import load


def test_every_line_is_answered_until_the_input_ends(tiny_bundle: Path) -> None:
    out = io.StringIO()
    assert chat(tiny_bundle, source=io.StringIO("A coin\n\nis heads\n"), out=out) == 2
    with load(tiny_bundle) as model:
        assert out.getvalue() == "".join(model.answer(q).text + "\n" for q in ("A coin", "is heads"))


def test_quit_ends_it(tiny_bundle: Path) -> None:
    assert chat(tiny_bundle, source=io.StringIO("/quit\nA coin\n"), out=io.StringIO()) == 0


def test_one_question_that_does_not_fit_is_an_error(tiny_bundle: Path) -> None:
    out = io.StringIO()
    assert chat(tiny_bundle, question="A coin", out=out) == 1
    with pytest.raises(UserError, match="shorten"):
        chat(tiny_bundle, question="x" * 1000, out=out)


def test_a_long_line_does_not_end_a_talk(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(tiny_bundle, source=io.StringIO("x" * 1000 + "\nA coin\n"), out=io.StringIO()) == 1
    assert capsys.readouterr().err.startswith("error: the prompt is")


def test_earlier_turns_are_sent_along_when_asked_for(tiny_bundle: Path) -> None:
    out = io.StringIO()
    chat(tiny_bundle, source=io.StringIO("A coin\nis heads\n"), out=out, remember=True, max_new_tokens=6)
    with load(tiny_bundle) as model:
        first = model.answer("A coin", max_new_tokens=6).text
        talk = [
            {"role": "user", "content": "A coin"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "is heads"},
        ]
        second = model.answer(talk, max_new_tokens=6).text
    assert out.getvalue() == f"{first}\n{second}\n"
