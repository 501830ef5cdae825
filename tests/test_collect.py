"""Collecting over real loopback HTTP: resuming, failing, and never asking twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from starlette.responses import JSONResponse, PlainTextResponse
from teaching import KINDS, chat_app, free_port, recipe_of, recorded, serving, write_rows

from pocketstill.errors import UserError
from pocketstill.manifest import read_manifest
from pocketstill_pipeline import problems
from pocketstill_pipeline.collect import collect, collect_config, read_questions
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.ledger import Ledger
from pocketstill_pipeline.problems.base import normalise
from pocketstill_pipeline.questions import build_questions
from pocketstill_pipeline.recipe import Recipe
from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.server import running_teacher

ALL_SKILLS = [{"name": n, "kind": k, "questions": 30, "heldout": 8} for n, k in KINDS.items()]
COIN = {"name": "coin_flip", "kind": "yes_no", "questions": 120, "heldout": 20}


def counted(url: str) -> int:
    """How many chat requests the server has answered."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=20) as response:
        return int(json.load(response)["requests"])


def answers(folder: Path) -> dict[str, Any]:
    """Every answered key of a collection with the text that answered it."""
    with Ledger(folder / "ledger.sqlite", readonly=True) as ledger:
        return {
            row.key: json.loads(row.response or "")["choices"][0]["message"]["content"]
            for row in ledger.rows()
            if row.state == "done"
        }


def states(folder: Path) -> dict[str, int]:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        return dict(connection.execute("SELECT state, count(*) FROM requests GROUP BY state").fetchall())


def start(recipe: Recipe, out: Path) -> subprocess.Popen[str]:
    """A collecting process of its own."""
    program = (
        "import sys; from pathlib import Path; from pocketstill_pipeline.collect import collect\n"
        "from pocketstill_pipeline.recipe import Recipe; from pocketstill.errors import UserError\n"
        "try: collect(Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]))\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", program, recipe.model_dump_json(), str(out)], stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def test_all_skills_are_asked_and_counted(tmp_path: Path) -> None:
    result = collect(recipe_of({"price_in": 1.0, "price_out": 2.0}, ALL_SKILLS), tmp_path)
    # 4 skills in two steps, D = 2 for 30 questions and once for 8 (and 8 of unseen names); tool calls in one step.
    assert result.requests == 4 * 2 * (2 * 30 + 8) + 2 * 8 + (2 * 30 + 8)
    assert (result.failed, result.from_cache, result.questions) == (0, 0, 5 * 38 + 8)
    assert result.price == pytest.approx((result.prompt_tokens + 2 * result.completion_tokens) / 1e6)
    manifest = read_manifest(tmp_path)
    assert manifest is not None and set(manifest.outputs) == {
        "questions.jsonl",
        "unreadable.jsonl",
        "ledger.sqlite",
        "samples/zero_shot_cot.jsonl",
    }
    assert len(read_questions(tmp_path)) == result.questions


def test_finished_collection_is_not_repeated(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig()) as url:
        recipe = recipe_of({"base_url": url})
        first = collect(recipe, tmp_path)
        asked = counted(url)
        assert collect(recipe, tmp_path) == first
        assert counted(url) == asked == first.requests


def test_more_questions_ask_only_what_is_new(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig()) as url:
        collect(recipe_of({"base_url": url}, [COIN | {"questions": 10, "heldout": 5}]), tmp_path)
        before = counted(url)
        result = collect(recipe_of({"base_url": url}, [COIN | {"questions": 15, "heldout": 5}]), tmp_path)
        assert counted(url) - before == result.requests == 2 * 2 * 5
        assert result.from_cache == before


def test_other_pace_or_gate_is_the_same_collection(tmp_path: Path) -> None:
    skills = [COIN | {"questions": 10}]
    first = collect(recipe_of({"concurrency": 4}, skills), tmp_path)
    again = collect(recipe_of({"concurrency": 9, "price_in": 1.0}, [skills[0] | {"gate": 0.9}]), tmp_path)
    assert again == first


def test_killed_collection_resumes_without_asking_twice(tmp_path: Path) -> None:
    """kill -9 in the middle: the second process asks exactly what the ledger lacks, and ends where one run would."""
    with running_teacher(TeacherConfig(latency_ms=4)) as url:
        recipe = recipe_of({"base_url": url, "concurrency": 8}, [COIN])
        with start(recipe, tmp_path / "cut") as process:
            while counted(url) < 150:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert read_manifest(tmp_path / "cut") is None
        time.sleep(0.1)
        answered, kept = counted(url), states(tmp_path / "cut")["done"]
        # Only what was in flight at the kill may be lost: at most one request a worker.
        assert 0 < kept <= answered <= kept + 16
        result = collect(recipe, tmp_path / "cut")
        total = 2 * (2 * 120 + 20)
        assert result.requests == counted(url) - answered == total - kept
        assert result.from_cache == kept
        collect(recipe, tmp_path / "whole")
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")
    for name in ("cut", "whole"):
        curate(recipe, tmp_path / name, tmp_path / f"{name}-curated")
    manifests = [read_manifest(tmp_path / f"{name}-curated") for name in ("cut", "whole")]
    assert manifests[0] is not None and manifests[1] is not None
    assert (manifests[0].inputs, manifests[0].outputs) == (manifests[1].inputs, manifests[1].outputs)


def test_interrupted_collection_keeps_its_answers(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig(latency_ms=4)) as url:
        recipe = recipe_of({"base_url": url, "concurrency": 8}, [COIN])
        with start(recipe, tmp_path) as process:
            while counted(url) < 100:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        assert "Task exception" not in err and "never retrieved" not in err
        kept = states(tmp_path)["done"]
        # What was on its way is paid for, and comes in.
        assert kept == counted(url)
        assert collect(recipe, tmp_path).requests == 2 * (2 * 120 + 20) - kept


def test_dead_teacher_is_one_quick_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"{url}: nobody answers there .*start it") as caught:
        collect(recipe_of({"base_url": url}), tmp_path)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    assert read_manifest(tmp_path) is None


def test_teacher_that_dies_on_the_way_keeps_what_it_said(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig(latency_ms=5)) as url:
        recipe = recipe_of({"base_url": url, "retries": 1, "concurrency": 4}, [COIN])
        process = start(recipe, tmp_path)
        while counted(url) < 60:
            time.sleep(0.01)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and err.count("\n") == 1 and "is kept" in err
    assert states(tmp_path)["done"] >= 50
    # As many as met its end, not all that were left.
    assert states(tmp_path).get("failed", 0) <= 24


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"message": "bad key sk-secret", "code": "invalid_api_key"}}, "key is refused.*MY_KEY"),
        (402, {"error": {"message": "pay"}}, "no quota left"),
        (
            404,
            {"error": {"message": "model x not found", "code": "model_not_found"}},
            "model x not found.*teacher.model",
        ),
        (404, {"detail": "Not Found"}, "HTTP 404.*base_url"),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, "no quota left"),
    ],
)
def test_hopeless_answers_end_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: Any, said: str
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    app = chat_app(lambda _body, _count: JSONResponse(body, status_code=status))
    with serving(app) as url, pytest.raises(UserError, match=said) as caught:
        teacher = {"base_url": url, "api_key_env": "MY_KEY", "retries": 0, "concurrency": 2}
        collect(recipe_of(teacher), tmp_path)
    assert app.state.counted["count"] <= 2
    assert "sk-secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_single_failures_are_kept_with_their_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    def answer(body: Any, count: int) -> Any:
        text = body["messages"][0]["content"]
        if "What is 3?" in text:
            return JSONResponse({"error": {"message": "not allowed", "code": "policy"}}, status_code=400)
        if "What is 4?" in text:
            refused = {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
            return JSONResponse({"choices": [refused]})
        if "What is 5?" in text:
            return PlainTextResponse("<html>gateway</html>")
        return "It is so."

    rows = [{"question": f"What is {i}?", "gold": "1", "split": "train"} for i in range(8)]
    path = write_rows(tmp_path / "q.jsonl", rows)
    skills = [{"name": "mine", "kind": "number", "source": str(path)}]
    with serving(chat_app(answer)) as url:
        recipe = recipe_of({"base_url": url, "samples": 1, "retries": 0}, skills)
        result = collect(recipe, tmp_path / "out")
    assert (result.failed, states(tmp_path / "out")) == (2, {"done": 11, "failed": 2})
    with Ledger(tmp_path / "out" / "ledger.sqlite", readonly=True) as ledger:
        reasons = {row.error for row in ledger.rows() if row.error}
    assert reasons == {"HTTP 400: not allowed", "the teacher's answer is not JSON"}
    samples = (tmp_path / "out" / "samples" / "zero_shot_cot.jsonl").read_text(encoding="utf-8").splitlines()
    said = {row["messages"][-1]["content"]: row.get("reason") for row in map(json.loads, samples)}
    assert said["What is 4?"] == "refused" and said["What is 3?"] == said["What is 5?"] == "failed_request"


def test_failed_requests_are_asked_again_by_a_new_collection(tmp_path: Path) -> None:
    broken = {"on": True}

    def answer(body: Any, count: int) -> Any:
        if broken["on"] and count % 2:
            return JSONResponse({"error": {"message": "try later"}}, status_code=400)
        return "yes"

    with serving(chat_app(answer)) as url:
        recipe = recipe_of({"base_url": url, "concurrency": 1}, [COIN | {"questions": 10, "heldout": 0}])
        assert collect(recipe, tmp_path).failed > 0
        broken["on"] = False
        (tmp_path / "manifest.json").unlink()
        assert collect(recipe, tmp_path).failed == 0
    assert states(tmp_path) == {"done": 40}


def test_answer_that_never_comes_is_a_failure_of_its_request(tmp_path: Path) -> None:
    import asyncio

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        if "What is 1?" in (await request.json())["messages"][0]["content"]:
            await asyncio.sleep(3)
        return JSONResponse({"choices": [{"message": {"content": "1"}, "finish_reason": "stop"}]})

    rows = [{"question": f"What is {i}?", "gold": "1", "split": "train"} for i in range(4)]
    path = write_rows(tmp_path / "q.jsonl", rows)
    skills = [{"name": "mine", "kind": "number", "source": str(path)}]
    with serving(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])) as url:
        recipe = recipe_of({"base_url": url, "samples": 1, "retries": 0, "timeout_s": 0.5}, skills)
        assert collect(recipe, tmp_path / "out").failed == 1
    with Ledger(tmp_path / "out" / "ledger.sqlite", readonly=True) as ledger:
        assert [row.error for row in ledger.rows() if row.error] == ["no answer in time"]


def test_run_of_failures_ends_the_run(tmp_path: Path) -> None:
    app = chat_app(lambda _body, _count: JSONResponse({"error": {"message": "broken"}}, status_code=400))
    with serving(app) as url, pytest.raises(UserError, match=r"25 requests in a row failed.*broken"):
        collect(recipe_of({"base_url": url, "concurrency": 4}, [COIN]), tmp_path)
    assert 25 <= app.state.counted["count"] < 40


def test_retry_after_is_honoured_and_attempts_are_counted(tmp_path: Path) -> None:
    def answer(_body: Any, count: int) -> Any:
        if count == 1:
            return JSONResponse({"error": {"message": "slow down"}}, status_code=429, headers={"retry-after": "1"})
        return "yes"

    with serving(chat_app(answer)) as url:
        started = time.monotonic()
        recipe = recipe_of({"base_url": url, "concurrency": 1, "samples": 1}, [COIN | {"questions": 2, "heldout": 0}])
        assert collect(recipe, tmp_path).failed == 0
    assert time.monotonic() - started >= 1
    with Ledger(tmp_path / "ledger.sqlite", readonly=True) as ledger:
        assert sorted(row.attempts for row in ledger.rows()) == [1, 1, 1, 2]


def test_requests_a_minute_are_spread(tmp_path: Path) -> None:
    with running_teacher(TeacherConfig()) as url:
        teacher = {"base_url": url, "requests_per_minute": 1200, "samples": 1}
        started = time.monotonic()
        result = collect(recipe_of(teacher, [COIN | {"questions": 10, "heldout": 0}]), tmp_path)
    # 20 requests at 20 a second, the first one at once.
    assert result.requests == 20 and time.monotonic() - started >= 0.9


def test_no_more_requests_in_flight_than_allowed(tmp_path: Path) -> None:
    import asyncio

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    flying = {"now": 0, "most": 0}

    async def chat(_: Request) -> Response:
        flying["now"] += 1
        flying["most"] = max(flying.values())
        await asyncio.sleep(0.01)
        flying["now"] -= 1
        return JSONResponse({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]})

    with serving(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])) as url:
        collect(recipe_of({"base_url": url, "concurrency": 5}, [COIN | {"questions": 20}]), tmp_path)
    assert flying["most"] == 5


def test_key_is_nowhere_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-1234")

    def answer(_body: Any, count: int) -> Any:
        if count == 2:
            return JSONResponse({"error": {"message": "your key sk-very-secret-1234 is fine"}}, status_code=400)
        return "yes"

    with serving(chat_app(answer)) as url:
        collect(recipe_of({"base_url": url, "concurrency": 1}), tmp_path)
    assert states(tmp_path)["failed"] == 1
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert b"secret" not in path.read_bytes(), path


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "teacher"])
def test_no_url_is_a_user_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"is no URL"):
        collect(recipe_of({"base_url": url}), tmp_path)


def test_password_in_the_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        collect(recipe_of({"base_url": "http://me:hunter2@127.0.0.1:1/v1"}), tmp_path)
    assert "hunter2" not in str(caught.value)
    assert all(b"hunter2" not in path.read_bytes() for path in filter(Path.is_file, tmp_path.rglob("*")))


def test_readonly_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        collect(recipe_of(), tmp_path / "out")


def test_questions_are_the_same_for_the_same_seed() -> None:
    recipe = recipe_of(None, ALL_SKILLS)
    assert build_questions(recipe) == build_questions(recipe)
    assert build_questions(recipe) != build_questions(recipe.model_copy(update={"seed": 18}))


def test_held_out_questions_are_apart_and_from_their_tenth() -> None:
    questions = build_questions(
        recipe_of(None, [skill | {"expand": 10 * (i < 3)} for i, skill in enumerate(ALL_SKILLS)])
    )
    train = {normalise(q.text) for q in questions if q.split == "train"}
    heldout = [q for q in questions if q.split == "heldout"]
    assert not train & {normalise(q.text) for q in heldout}
    assert not any(problems.held_out(text) for text in train)
    assert all(problems.held_out(q.text) for q in heldout if not q.tags)
    assert len({q.id for q in questions}) == len(questions)
    assert sum(q.route == "expansion" for q in questions) == 30


def test_unseen_names_are_a_skill_of_their_own() -> None:
    questions = build_questions(recipe_of(None, ALL_SKILLS))
    unseen = [q for q in questions if q.skill == "last_letters_unseen"]
    assert len(unseen) == 8
    assert all(q.split == "heldout" and q.tags == ("unseen_names",) for q in unseen)


def test_file_without_splits_holds_out_a_seeded_share(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{"question": f"q{i}", "gold": "1"} for i in range(50)])
    recipe = recipe_of(None, [{"name": "mine", "kind": "number", "source": str(path), "heldout": 12}])
    questions = build_questions(recipe)
    assert sum(q.split == "heldout" for q in questions) == 12 and len(questions) == 50
    assert questions == build_questions(recipe)


def test_equal_rows_of_a_file_are_asked_for_samples_of_their_own(tmp_path: Path) -> None:
    rows = [recorded("How many?", f"So {i}.", f"{i}", "1", split="train") for i in range(3)]
    path = write_rows(tmp_path / "r.jsonl", rows)
    skills = [{"name": "mine", "kind": "number", "source": str(path)}]
    recipe = recipe_of({"base_url": "replay", "replay": [str(path)], "samples": 1}, skills)
    assert collect(recipe, tmp_path / "out").requests == 6
    assert set(answers(tmp_path / "out").values()) == {"So 0.", "So 1.", "So 2.", "0", "1", "2"}


@pytest.mark.parametrize(
    ("skill", "said"),
    [
        ({"name": "coin_flop", "kind": "yes_no"}, "'coin_flop' cannot be generated; nearest: 'coin_flip'"),
        ({"name": "coin_flip", "kind": "number"}, "its kind is 'yes_no'"),
        ({"name": "mine", "kind": "number", "source": "none.jsonl"}, "cannot be read"),
    ],
)
def test_impossible_skill_is_a_user_error(skill: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_questions(recipe_of(None, [skill]))


def test_half_given_splits_are_refused(tmp_path: Path) -> None:
    rows = [{"question": "a", "gold": "1", "split": "train"}, {"question": "b", "gold": "1"}]
    path = write_rows(tmp_path / "q.jsonl", rows)
    with pytest.raises(UserError, match="1 of 2 rows have no 'split'"):
        build_questions(recipe_of(None, [{"name": "mine", "kind": "number", "source": str(path)}]))


def test_brackets_in_an_unreadable_row_are_no_markup(tmp_path: Path) -> None:
    rows = [{"question": "q", "gold": "1", "split": "train"}, {"question": "r", "gold": "1", "split": "[/INST]"}]
    skill = {"name": "mine", "kind": "number", "source": str(write_rows(tmp_path / "q.jsonl", rows))}
    with serving(chat_app(lambda body, count: "1")) as url, (tmp_path / "said").open("w") as said:
        result = collect(
            recipe_of({"base_url": url}, [skill]), tmp_path / "out", progress=Console(file=said, width=400)
        )
    assert result.unreadable == 1 and "[/INST]" in (tmp_path / "said").read_text()


def test_a_gold_answer_is_what_a_completion_ends_with(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "3 + 4 is\n7"}]}]
    path = write_rows(tmp_path / "q.jsonl", rows)
    assert [
        q.gold for q in build_questions(recipe_of(None, [{"name": "mine", "kind": "number", "source": str(path)}]))
    ] == ["7"]


def test_data_sets_of_one_name_are_other_questions() -> None:
    configs = [collect_config(recipe_of(None, [{"name": "m", "kind": "text", "source": f"hf:{o}/set"}])) for o in "ab"]
    assert configs[0] != configs[1]
