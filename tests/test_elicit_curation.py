"""Questions out of topics and documents, and self-chat, over HTTP from the embedded teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from teaching import chat_app, recipe_of, serving

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.elicit.curation import passages
from pocketstill_pipeline.elicit.prompts.curation import END, NOT_IN_TEXT, read_topics
from pocketstill_pipeline.example import Elicited

FREE = [{"name": "free", "kind": "text", "graded": False, "source": "none"}]
HANDBOOK = (
    "The library opens at nine. The reading room is on the second floor. A card costs four pounds a year. "
    "The workshop holds up to fifteen people. The oldest map was drawn in 1698. Dogs are welcome in the garden. "
) * 2


def elicited(tmp_path: Path, entry: dict[str, Any], teacher: dict[str, Any] | None = None) -> list[Elicited]:
    recipe = recipe_of(teacher, FREE, elicit=[{"skill": "free"} | entry])
    collect(recipe, tmp_path)
    lines = (tmp_path / "samples" / f"{entry['method']}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Elicited.from_dict(json.loads(line)) for line in lines]


def test_every_combination_is_asked_as_often_as_any_other(tmp_path: Path) -> None:
    entry = {
        "method": "from_topics", "topics": ["cooking", "sleep"], "personas": ["a nurse", "a child"],
        "difficulties": ["easy", "hard"], "count": 16,
    }  # fmt: skip
    found = elicited(tmp_path, entry, {"embedded": {"noise": 0.0}})
    tags = [one.tags for one in found]
    assert len(found) == 16 and all(tags.count(one) == 2 for one in tags)
    assert all(one.route == "curation" and len(one.source) == 2 and one.answer for one in found)


def test_topics_that_the_teacher_names_are_read_from_any_list(tmp_path: Path) -> None:
    tidy = elicited(tmp_path / "a", {"method": "from_topics", "topics": 5, "count": 30}, {"embedded": {"noise": 0.0}})
    untidy = elicited(tmp_path / "b", {"method": "from_topics", "topics": 5, "count": 30}, {"embedded": {"noise": 1.0}})
    for found in (tidy, untidy):
        topics = {tag for one in found for tag in one.tags if tag.startswith("topic:")}
        assert len(topics) == 5 and not any(character in "".join(topics) for character in "1234.")


@pytest.mark.parametrize(
    "reply",
    [
        "Cats\n\nDogs.\nCats",
        "Here are two topics:\n\nCats\nDogs",
        "Sure! Here they are:\n\n1. Cats\n2. Dogs\n\nLet me know if you need more.",
        "**Pets:**\n- **Cats**\n- **Dogs**\n",
        "**1.** Cats\n**2.** Dogs",
        "**Cats**\n**Dogs**",
    ],
)
def test_what_stands_around_a_list_is_no_topic(reply: str) -> None:
    assert read_topics(reply) == ["Cats", "Dogs"]


@pytest.mark.parametrize(
    ("said", "question"),
    [('"Do they sleep?"', "Do they sleep?"), ("“Do they?”\n", "Do they?"), ('"Yes" or "no"?"', '"Yes" or "no"?"')],
)
def test_a_question_is_asked_without_the_quotation_marks_around_it(tmp_path: Path, said: str, question: str) -> None:
    with serving(chat_app(lambda body, count: said)) as url:
        entry = {"method": "from_topics", "topics": ["cats"], "count": 1}
        (found,) = elicited(tmp_path, entry, {"base_url": url})
    assert found.question == question


@pytest.mark.parametrize("first", [{"refusal": "No."}, {"content": "I'm sorry, I cannot help with that."}])
def test_a_teacher_that_refuses_to_name_topics_is_asked_again(tmp_path: Path, first: dict[str, str]) -> None:
    def answer(body: Any, count: int) -> Any:
        message = {"role": "assistant", "content": "1. Cats\n2. Dogs\n3. Eels"} | (first if count == 1 else {})
        return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    with serving(chat_app(answer)) as url:
        found = elicited(tmp_path, {"method": "from_topics", "topics": 4, "count": 30}, {"base_url": url})
    topics = {tag for one in found for tag in one.tags if tag.startswith("topic:")}
    assert topics == {"topic:Cats", "topic:Dogs", "topic:Eels"} and len(found) == 30


def test_a_teacher_without_topics_is_a_listed_failure(tmp_path: Path) -> None:
    with serving(chat_app(lambda body, count: " \n ")) as url:
        found = elicited(tmp_path, {"method": "from_topics", "count": 5}, {"base_url": url})
    assert [one.reason for one in found] == ["empty"]


def test_a_question_stays_only_with_words_that_the_text_has(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(HANDBOOK, encoding="utf-8")
    entry = {
        "method": "from_documents", "documents": str(tmp_path / "book.txt"), "questions": 6, "unanswerable": 0.0,
        "passage_words": 60, "overlap_words": 0,
    }  # fmt: skip
    honest = elicited(tmp_path / "a", entry, {"embedded": {"mistakes": 0.0, "noise": 0.0}, "max_tokens": 800})
    assert honest and all(one.reason is None and one.messages[0]["content"].count("Question: ") == 1 for one in honest)
    liar = elicited(tmp_path / "b", entry, {"embedded": {"mistakes": 1.0, "noise": 0.0}, "max_tokens": 800})
    assert liar and all(one.reason == "quote_not_in_text" for one in liar)


def test_what_the_text_does_not_answer_is_answered_so(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(HANDBOOK, encoding="utf-8")
    entry = {"method": "from_documents", "documents": str(tmp_path / "book.txt"), "unanswerable": 1.0}
    found = elicited(tmp_path / "run", entry, {"embedded": {"noise": 0.0}, "max_tokens": 800})
    assert found and {one.answer for one in found} == {NOT_IN_TEXT}


def test_passages_cover_the_text_and_end_where_sentences_do() -> None:
    text = " ".join(f"Word{index} goes on here." for index in range(60))
    found = list(passages(text, 40, 8))
    assert all(len(piece.split()) <= 40 and piece.endswith(".") and piece in text for piece in found)
    assert {word for piece in found for word in piece.split()} == set(text.split())
    assert list(passages("short", 40, 8)) == ["short"] and list(passages(" ", 40, 8)) == []


def test_self_chat_gives_one_example_a_turn_with_all_that_was_said(tmp_path: Path) -> None:
    entry = {"method": "self_chat", "topics": ["cooking"], "conversations": 6, "turns": 3, "system": "Be brief."}
    found = elicited(tmp_path, entry, {"embedded": {"noise": 0.0}})
    by_conversation: dict[str, list[Elicited]] = {}
    for one in found:
        by_conversation.setdefault(one.id.partition("/")[0], []).append(one)
    assert len(by_conversation) == 6
    for turns in by_conversation.values():
        for number, one in enumerate(turns):
            roles = [turn["role"] for turn in one.messages]
            assert roles == ["system", *["user", "assistant"] * number, "user"]
            assert not any(END in turn["content"] for turn in one.messages)
            if number:
                said = {"role": "assistant", "content": turns[number - 1].answer}
                assert one.messages[: len(turns[number - 1].messages) + 1] == [*turns[number - 1].messages, said]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "refused"),
        ("As an AI language model, I cannot play a person.", "refused"),
        ("I cannot help my son with fractions. What can I do?", None),
    ],
)
@pytest.mark.parametrize("method", ["from_topics", "self_chat"])
def test_who_will_not_ask_is_not_answered(tmp_path: Path, method: str, said: str, reason: str | None) -> None:
    more = {"count": 1} if method == "from_topics" else {"conversations": 1, "turns": 1}
    with serving(app := chat_app(lambda body, count: said if count == 1 else "Gladly.")) as url:
        (found,) = elicited(tmp_path, {"method": method, "topics": ["cats"]} | more, {"base_url": url})
    assert (found.reason, app.state.counted["count"]) == (reason, 1 if reason else 2)


def test_self_chat_needs_something_to_talk_about(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give topics"):
        elicited(tmp_path, {"method": "self_chat"})
