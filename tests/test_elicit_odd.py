"""What recipes and teachers get wrong: said before anything is paid for, or kept out with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from teaching import chat_app, recipe_of, serving, write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.elicit.curation import passages
from pocketstill_pipeline.elicit.methods import METHODS
from pocketstill_pipeline.elicit.prompts.curation import END
from pocketstill_pipeline.endpoints import endpoint_of, local_server
from pocketstill_pipeline.example import Elicited
from pocketstill_pipeline.questions import build_questions
from pocketstill_pipeline.quote import plans_of, quote_of
from pocketstill_pipeline.recipe import Recipe

NOWHERE = {"base_url": "http://127.0.0.1:9/v1"}
CHAT = [{"role": "user", "content": "My cat is Tom."}, {"role": "assistant", "content": "Hello, Tom."}]
LAST = "How many letters has its name?"
REQUEST_METHODS = ["zero_shot_cot", "direct", "few_shot_cot", "system_messages", "program_of_thought", "paraphrase"]


def free(folder: Path, rows: list[dict[str, Any]] | None = None, kind: str = "text") -> list[dict[str, Any]]:
    """A skill without right answers, of a file."""
    path = write_rows(folder / "notes.jsonl", rows or [{"question": f"Tell me of the number {n}."} for n in range(6)])
    return [{"name": "notes", "kind": kind, "graded": False, "source": str(path), "heldout": 0}]


def made(folder: Path, entry: str) -> list[Elicited]:
    lines = (folder / "samples" / f"{entry}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Elicited.from_dict(json.loads(line)) for line in lines]


def body_of(message: dict[str, Any], **choice: Any) -> Response:
    """A completion as JSON in ASCII, escapes of half a character among it."""
    whole = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"} | message} | choice
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return Response(json.dumps({"choices": [whole], "usage": usage}), media_type="application/json")


def told(folder: Path, reply: Any, entry: dict[str, Any], skills: Any = None) -> list[Elicited]:
    """What becomes of an entry when every answer is `reply`, a message or a text."""
    with serving(chat_app(lambda body, count: body_of(reply) if isinstance(reply, dict) else reply)) as url:
        collect(recipe_of({"base_url": url, "samples": 1}, skills, elicit=[entry]), folder / "out")
    return made(folder / "out", entry["method"])


def test_reasons_without_a_right_answer_are_kept(tmp_path: Path) -> None:
    skills = free(tmp_path, kind="number")
    with serving(chat_app(lambda body, count: "Two threes are 6. The answer is 6.")) as url:
        recipe = recipe_of({"base_url": url, "samples": 1}, skills, elicit=[{"method": "zero_shot_cot"}])
        collect(recipe, tmp_path / "collect")
    assert {one.gold for one in made(tmp_path / "collect", "zero_shot_cot")} == {None}
    assert curate(recipe, tmp_path / "collect", tmp_path / "curate").train == 6


@pytest.mark.parametrize("entry", ["lmsi", "star", "rest", "self_judge", "harder"])
def test_a_recipe_that_asks_a_student_must_name_one(entry: str) -> None:
    with pytest.raises(ValueError, match=rf"'{entry}' asks the student; add \[student_endpoint\]"):
        recipe_of(NOWHERE, elicit=[{"method": "direct"}, {"method": entry}])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"method": "lmsi"}, "'notes' is not graded"),
        ({"method": "star"}, "'notes' is not graded"),
        ({"method": "rest"}, "'notes' has no right answers"),
        ({"method": "paraphrase", "label": False}, "'notes' has no right answers"),
    ],
)
def test_what_needs_right_answers_is_told_before_any_request(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    def answer(body: Any, count: int) -> str:
        raise AssertionError("asked")

    with serving(chat_app(answer)) as url:
        teacher = {"base_url": url}
        entries = [{"method": "direct"}, entry]
        recipe = recipe_of(teacher, free(tmp_path), elicit=entries, student_endpoint=teacher)
        with pytest.raises(UserError, match=said):
            collect(recipe, tmp_path / "out")


@pytest.mark.parametrize("topics", [[], [" "], 0])
def test_no_topics_are_an_error_of_the_recipe(topics: Any) -> None:
    with pytest.raises(ValueError, match="topics"):
        recipe_of(NOWHERE, elicit=[{"method": "from_topics", "skill": "coin_flip", "topics": topics}])


def test_of_a_list_of_topics_that_was_cut_the_whole_ones_are_used(tmp_path: Path) -> None:
    def answer(body: Any, count: int) -> Response:
        if count == 1:
            return body_of({"content": "1. Cats\n2. Dogs\n3. Hor"}, finish_reason="length")
        return body_of({"content": "Which of them sleeps most?"})

    with serving(chat_app(answer)) as url:
        entry = {"method": "from_topics", "skill": "coin_flip", "count": 12}
        collect(recipe_of({"base_url": url}, elicit=[entry]), tmp_path)
    found = made(tmp_path, "from_topics")
    assert {tag for one in found for tag in one.tags if tag.startswith("topic:")} == {"topic:Cats", "topic:Dogs"}
    assert {one.reason for one in found} == {None}


def test_passages_always_move_on() -> None:
    text = " ".join(f"word{n}{'.' if n % 11 == 0 else ''}" for n in range(200))
    found = list(passages(text, 20, 18))
    assert len({one.split()[-1] for one in found}) == len(found)
    assert {word for one in found for word in one.split()} == set(text.split())


@pytest.mark.parametrize(
    "around",
    [
        "{}", "```json\n{}\n```", "```\n{}\n```", "``` JSON\n{}```", "Here it is:\n\n```json\n{}\n```\nDone.",
        "<think>A {{set}} of [1].</think> {}",
        '<think>{{"question": "Draft?"}}</think> {}', '{{"made": {}}}',
    ],
)  # fmt: skip
def test_an_object_is_found_whatever_stands_around_it(tmp_path: Path, around: str) -> None:
    made_up = json.dumps({"question": "Which of them }} is odd?"})
    seen: list[Any] = []

    def teacher(body: Any, count: int) -> str:
        seen.append(body.get("response_format"))
        return around.format(made_up) if seen[-1] else "7 of 9 is odd."

    skills = [{"name": "arithmetic", "kind": "number", "questions": 3, "heldout": 0}]
    entry = {"method": "harder", "count": 1, "easy_share": 0.0}
    with serving(chat_app(teacher)) as url, serving(chat_app(lambda body, count: "Who knows?")) as student:
        endpoint = {"base_url": student}
        collect(recipe_of({"base_url": url}, skills, elicit=[entry], student_endpoint=endpoint), tmp_path / "out")
    (one,) = made(tmp_path / "out", "harder")
    assert (one.reason, one.question, len(seen)) == (None, "Which of them }} is odd?", 3)
    # OpenAI refuses strict schemas with lengths in them.
    assert "Length" not in json.dumps(seen)


CHINESE = ["天空为什么是蓝色的？", "水为什么会结冰？", "鸟为什么会飞？", "月亮为什么会变圆？"]


def test_questions_in_chinese_are_told_from_those_that_are_there(tmp_path: Path) -> None:
    rows = [{"question": text, "split": "test" if text == CHINESE[0] else "train"} for text in CHINESE[:3]]
    made_up = iter([*CHINESE, CHINESE[3]] * 10)

    def teacher(body: Any, count: int) -> str:
        if "response_format" not in body:
            return "很久以前人们就知道这一点。"
        wanted = body["response_format"]["json_schema"]["name"]
        return json.dumps(
            {"reason": "so", "first": 5, "second": 5} if wanted == "Refereed" else {"question": next(made_up)}
        )

    with serving(chat_app(teacher)) as url:
        entry = {"method": "harder", "count": 2, "easy_share": 0.0, "gap": 0.0}
        endpoint = {"base_url": url, "concurrency": 1}
        recipe = recipe_of(endpoint, free(tmp_path, rows), elicit=[entry], student_endpoint=endpoint)
        collect(recipe, tmp_path / "out")
    found = made(tmp_path / "out", "harder")
    assert [one.question for one in found if one.reason is None] == [CHINESE[3]]
    assert {one.question for one in found if one.reason == "in_pool"} == set(CHINESE)


def test_wordings_in_chinese_are_told_from_the_question(tmp_path: Path) -> None:
    listed = f"1. {CHINESE[0]}\n2. 为什么天空看起来是蓝色的？\n3. 为什么天空看起来是蓝色的？"
    found = told(tmp_path, listed, {"method": "paraphrase", "limit": 1}, free(tmp_path, [{"question": CHINESE[0]}]))
    assert [one.reason for one in found] == ["similar_wording", None, "similar_wording"]


def test_traces_that_are_not_there_are_said_by_the_quote(tmp_path: Path) -> None:
    entry = {"method": "traces", "skill": "coin_flip", "data": str(tmp_path / "none.jsonl")}
    recipe = recipe_of(NOWHERE, [{"name": "coin_flip", "kind": "yes_no", "questions": 2, "heldout": 1}], elicit=[entry])
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        plans_of(recipe, build_questions(recipe), tmp_path)


def test_traces_are_read_as_answers_are(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "completion": "Of 12 birds 5 fly.\n12 - 5 = 7\n7", "gold": "7"},
        {"question": "b", "completion": "Of 12 birds 5 fly. The answer is 7, not 5.", "gold": "7"},
        {"question": "c", "rationale": "12 - 5 = 7.", "completion": "7.\n\nAs 12 less 5 is.", "gold": "7"},
    ]
    skills = [{"name": "birds", "kind": "number", "source": "none"}]
    entry = {"method": "traces", "skill": "birds", "data": str(write_rows(tmp_path / "rows.jsonl", rows))}
    with serving(chat_app(lambda body, count: "nobody asks")) as url:
        collect(recipe_of({"base_url": url}, skills, elicit=[entry]), tmp_path / "out")
    found = made(tmp_path / "out", "traces")
    assert [one.answer for one in found] == ["7", "7", "7"]
    assert found[0].rationale == "Of 12 birds 5 fly.\n12 - 5 = 7"


def test_half_a_character_ends_no_collection(tmp_path: Path) -> None:
    found = told(tmp_path, {"content": "A half \ud83d of it. The answer is yes."}, {"method": "zero_shot_cot"})
    assert {one.answer for one in found} == {"yes"}
    assert all("\ufffd" in one.completion for one in found)


def test_half_a_character_in_a_call_is_a_bad_argument(tmp_path: Path) -> None:
    function = {"name": "call", "arguments": '{"contact": "\\ud83d"}'}
    call = {"id": "a", "type": "function", "function": function}
    skills = [{"name": "tool_call", "kind": "json", "questions": 4, "heldout": 0}]
    found = told(tmp_path, {"content": None, "tool_calls": [call]}, {"method": "tool_calls"}, skills)
    assert {one.reason for one in found} == {"bad_arguments"}


@pytest.mark.parametrize("method", ["zero_shot_cot", "direct", "few_shot_cot", "system_messages", "self_chat"])
def test_a_call_where_no_tool_was_offered_is_no_answer(tmp_path: Path, method: str) -> None:
    function = {"name": "f", "arguments": "{}"}
    message = {"content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]}
    more: dict[str, Any] = {}
    if method == "few_shot_cot":
        shots = [{"question": "q", "rationale": "r", "answer": "a"}]
        more = {"shots": 1, "examples": str(write_rows(tmp_path / "shots.jsonl", shots))}
    if method == "self_chat":
        more = {"skill": "coin_flip", "conversations": 3}
    found = told(tmp_path, message, {"method": method} | more)
    assert found and {one.reason for one in found} == {"empty"}


def test_content_in_parts_and_broken_logprobs_end_no_collection(tmp_path: Path) -> None:
    def answer(body: Any, count: int) -> Response:
        parts = {"content": [{"type": "text", "text": "yes"}]}
        whole = {"content": "The answer is yes."}
        logprobs = [
            {"content": [None, "yes"]},
            {"content": [{"token": "yes", "logprob": 0.0, "top_logprobs": ["yes"]}]},
        ]
        if count % 4 == 1:
            return body_of(parts, finish_reason="length")
        return body_of(whole, logprobs=logprobs[count % 2])

    with serving(chat_app(answer)) as url:
        skills = [{"name": "coin_flip", "kind": "yes_no", "questions": 4, "heldout": 0}]
        recipe = recipe_of({"base_url": url, "samples": 1}, skills, elicit=[{"method": "top_logprobs"}])
        collect(recipe, tmp_path / "out")
    assert {one.reason for one in made(tmp_path / "out", "top_logprobs")} <= {"truncated", "no_logprobs"}


def test_a_chat_that_ends_before_it_starts_asks_nothing(tmp_path: Path) -> None:
    found = told(tmp_path, END, {"method": "self_chat", "skill": "coin_flip", "conversations": 3})
    assert [one.reason for one in found] == ["empty"] * 3


@pytest.mark.parametrize("method", REQUEST_METHODS)
def test_the_teacher_is_shown_the_conversation_that_a_question_ends(tmp_path: Path, method: str) -> None:
    turns = [*CHAT, {"role": "user", "content": LAST}, {"role": "assistant", "content": "The answer is 3."}]
    rows = [{"messages": turns}]
    skills = free(tmp_path, rows, kind="number")
    skills[0]["graded"] = True
    more: dict[str, Any] = {}
    if method == "few_shot_cot":
        shots = [{"question": "q", "rationale": "r", "answer": "1"}]
        more = {"shots": 1, "examples": str(write_rows(tmp_path / "shots.jsonl", shots))}
    seen: list[str] = []

    def answer(body: Any, count: int) -> str:
        turns = [turn["content"] for turn in body["messages"]]
        if "in other words" in turns[-1] or "wordings" in turns[-1]:
            return "1. Its name has how many letters?"
        seen.append("|".join(turns))
        return "T, o, m: that is 3. The answer is 3."

    with serving(chat_app(answer)) as url:
        entry = {"method": method} | more
        collect(recipe_of({"base_url": url, "samples": 1}, skills, elicit=[entry]), tmp_path / "out")
    assert seen and all("My cat is Tom.|Hello, Tom.|" in one for one in seen), seen


def test_the_same_words_behind_another_conversation_are_another_question(tmp_path: Path) -> None:
    other = [{"role": "user", "content": "My dog is Rex."}, {"role": "assistant", "content": "Hello, Rex."}]
    rows = [{"messages": [*before, {"role": "user", "content": LAST}]} for before in (CHAT, other)]
    questions = build_questions(recipe_of(NOWHERE, free(tmp_path, rows)))
    assert [one.occurrence for one in questions] == [0, 0]
    assert len({one.id for one in questions}) == 2


def bundle_recipe(folder: Path, **more: Any) -> Recipe:
    (folder / "pocketstill.json").write_text("{}", encoding="utf-8")
    return recipe_of({"base_url": "bundle", "bundle": str(folder)} | more)


def test_a_variant_of_a_bundle_answers_under_its_own_name(tmp_path: Path) -> None:
    plain, other = bundle_recipe(tmp_path), bundle_recipe(tmp_path, variant="gguf-q4_k_m")
    server = local_server(other, other.teacher)
    assert server is not None and server.variant == "gguf-q4_k_m"
    assert endpoint_of(other, other.teacher) == endpoint_of(plain, plain.teacher) + "&variant=gguf-q4_k_m"
    with pytest.raises(ValueError, match="variant"):
        recipe_of({"variant": "gguf-q4_k_m"})


def test_the_quote_of_what_builds_on_an_entry_knows_its_samples_and_skills(tmp_path: Path) -> None:
    skills = [
        {"name": n, "kind": k, "questions": 10, "heldout": 0}
        for n, k in (("coin_flip", "yes_no"), ("arithmetic", "number"))
    ]
    first = {"method": "direct", "samples": 5, "skills": ["arithmetic"]}
    recipe = recipe_of({"samples": 1}, skills, elicit=[first, {"method": "score", "of": "direct"}])
    quote = quote_of(recipe, plans_of(recipe, build_questions(recipe), tmp_path), tmp_path)
    assert [line.requests for line in quote.lines] == [(50, 50), (10, 50)]


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_described(method: str) -> None:
    fields = METHODS[method].settings.model_fields
    assert [name for name, info in fields.items() if name != "method" and not info.description] == []
