"""Top logprobs: kept exactly, kept small, and asked for over HTTP."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.responses import JSONResponse
from teaching import chat_app, recipe_of, serving

from pocketstill.errors import UserError
from pocketstill_pipeline.collect import collect
from pocketstill_pipeline.curate import curate
from pocketstill_pipeline.elicit.feature import UNLIKELY, pack_logprobs, unpack_logprobs
from pocketstill_pipeline.example import Elicited

SHARED = Path(__file__).parents[2] / "shared" / "data"
ARITHMETIC = [{"name": "arithmetic", "kind": "number", "questions": 6, "heldout": 2}]
FREE = [{"name": "coin_flip", "kind": "yes_no", "graded": False, "questions": 3, "heldout": 0}]


def entry(
    said: bytes, logprob: float | None, pairs: list[tuple[bytes, float]], *, spelt: bool = True
) -> dict[str, Any]:
    def one(token: bytes, value: float | None) -> dict[str, Any]:
        return {
            "token": token.decode(errors="replace"), "logprob": value, "bytes": list(token) if spelt else None,
        }  # fmt: skip

    return one(said, logprob) | {"top_logprobs": [one(*pair) for pair in pairs]}


def test_tokens_come_back_exactly_and_in_their_order() -> None:
    """Halves of a character look alike as text; their bytes tell them apart."""
    halves = [(b"\xe2\x80", -0.5), (b"\xe2\x81", -1.5), (b"\xf0\x9f\x99", -2.5)]
    content = [entry(b"\xe2\x81", -1.5, halves), entry(b" one", -0.1, [(b" one", -0.1), (b"\x82", -3.0)])]
    found = unpack_logprobs(pack_logprobs(content))
    assert [found.said(0), found.said(1)] == [b"\xe2\x81", b" one"]
    assert found.pairs(0) == halves
    assert [token for token, _ in found.pairs(1)] == [b" one", b"\x82"]
    assert sorted(set(found.tokens)) == sorted(found.tokens)


def test_a_said_token_that_is_not_listed_joins_its_place() -> None:
    content = [entry(b"odd", UNLIKELY, [(b"a", -0.25), (b"b", -2.0)]), entry(b"x", None, [])]
    found = unpack_logprobs(pack_logprobs(content))
    assert found.pairs(0) == [(b"a", -0.25), (b"b", -2.0), (b"odd", UNLIKELY)]
    assert (found.said(0), found.said(1)) == (b"odd", b"x")
    assert found.tail[0] == pytest.approx(1 - math.exp(-0.25) - math.exp(-2), rel=1e-3)


def test_places_may_have_fewer_than_k_and_tokens_without_bytes() -> None:
    content = [entry("é".encode(), -0.5, [("é".encode(), -0.5)] * 1, spelt=False), entry(b"b", -0.0, [(b"b", -0.0)])]
    found = unpack_logprobs(pack_logprobs(content))
    assert [len(found.pairs(place)) for place in range(2)] == [1, 1]
    assert found.said(0) == "é".encode()
    assert found.tail[1] == 0


def test_replies_keep_their_places_apart() -> None:
    place = entry(b"a", -1.0, [(b"a", -1.0)])
    assert unpack_logprobs(pack_logprobs([place] * 5, [place] * 2)).parts == (5, 2)
    empty = unpack_logprobs(pack_logprobs([]))
    assert empty.parts == (0,) and len(empty.tail) == 0 and empty.tokens == ()


def test_logprobs_are_within_one_percent_of_what_was_sent() -> None:
    sent = -np.geomspace(1.2e-8, 255.0, 4000)
    content = [entry(b"a", float(value), [(b"a", float(value))]) for value in sent]
    read = unpack_logprobs(pack_logprobs(content)).logprobs
    assert float(np.max(np.abs(read / sent - 1))) < 1e-2
    ordinary = np.abs(sent) > 2.4e-7
    assert float(np.max(np.abs(read / sent - 1)[ordinary])) < 5e-4
    beyond = unpack_logprobs(pack_logprobs([entry(b"a", -700.0, [(b"a", -700.0)])]))
    assert float(beyond.logprobs[0]) == -255.875


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b"", lambda b: b[:20] + b"\xff" + b[21:], lambda b: b"no"]
)
def test_damaged_bytes_are_told(damage: Any) -> None:
    packed = pack_logprobs([entry(b"a", -1.0, [(b"a", -1.0), (b"b", -1.2)])] * 9)
    with pytest.raises(ValueError, match="no packed logprobs"):
        unpack_logprobs(damage(packed))


@pytest.mark.parametrize("value", [0.5, float("nan"), "x"])
def test_what_is_no_logarithm_of_a_probability_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        pack_logprobs([entry(b"a", value, [])])


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "phi-3"])
def test_at_most_150_bytes_a_token_at_k_20(name: str) -> None:
    """Distributions of a trigram model with Witten-Bell smoothing over real solutions, in real vocabularies."""
    if not (SHARED / "gsm8k").is_dir():
        pytest.skip("needs the shared data: gsm8k and tokenizers")
    packed, places = 0, 0
    for content in trigram_contents(name):
        blob = pack_logprobs(content)
        packed, places = packed + len(blob), places + len(content)
        found = unpack_logprobs(blob)
        for place, sent in enumerate(content):
            listed = [(bytes(one["bytes"]), one["logprob"]) for one in sent["top_logprobs"]]
            assert [token for token, _ in found.pairs(place)[:20]] == [token for token, _ in listed]
            assert found.said(place) == bytes(sent["bytes"])
    assert places > 800
    assert packed / places < 100


def trigram_contents(name: str) -> list[list[dict[str, Any]]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizers" / name / "tokenizer.json"))
    lines = (SHARED / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:700]
    texts = [f"{row['question']}\n{row['answer']}" for row in map(json.loads, lines)]
    ids = [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]
    grams: list[defaultdict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(3)]
    for text in ids[:-12]:
        for at, token in enumerate(text):
            for order in range(min(at, 2) + 1):
                grams[order][tuple(text[at - order : at])][token] += 1
    size = tokenizer.get_vocab_size()

    def place(text: list[int], at: int) -> dict[str, Any]:
        share = np.full(size, 1 / size)
        for order in range(3):
            seen = grams[order].get(tuple(text[at - order : at]))
            if seen:
                total = seen.total() if hasattr(seen, "total") else sum(seen.values())
                share *= len(seen) / (total + len(seen))
                share[list(seen)] += np.array(list(seen.values())) / (total + len(seen))
        top = np.argpartition(-share, 20)[:20]
        top = top[np.argsort(-share[top])]
        pairs = [(spelt(tokenizer, int(one)), float(np.log(share[one]))) for one in top]
        return entry(spelt(tokenizer, text[at]), float(np.log(share[text[at]])), pairs)

    return [[place(text, at) for at in range(40, min(len(text), 160))] for text in ids[-12:]]


def spelt(tokenizer: Any, token: int) -> bytes:
    """The token as the vocabulary writes it: one string a token, whatever the way of writing bytes."""
    return str(tokenizer.id_to_token(token)).replace("Ġ", " ").replace("▁", " ").encode()


def samples(folder: Path, name: str = "top_logprobs") -> list[Elicited]:
    lines = (folder / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Elicited.from_dict(json.loads(line)) for line in lines]


def test_distributions_come_with_both_steps_and_reach_the_training_table(tmp_path: Path) -> None:
    recipe = recipe_of({"samples": 2}, ARITHMETIC, elicit=[{"method": "top_logprobs", "k": 5}])
    collect(recipe, tmp_path / "collect")
    found = samples(tmp_path / "collect")
    assert len(found) == 6 * 2 + 2 and all(one.route == "feature" and one.reason is None for one in found)
    for one in found:
        assert one.top_logprobs is not None
        packed = unpack_logprobs(one.top_logprobs)
        said = [packed.said(place) for place in range(len(packed.chosen))]
        first, second = packed.parts
        assert one.rationale.encode() in b"".join(said[:first])
        assert one.completion.strip().encode() in b"".join(said[first:]) and len(said) == first + second
        assert all(5 <= len(packed.pairs(place)) <= 6 for place in range(len(said)))
        assert float(np.max(packed.tail)) < 1
    curate(recipe, tmp_path / "collect", tmp_path / "curate")
    kept = pq.read_table(tmp_path / "curate" / "train.parquet").to_pylist()
    assert kept and all(unpack_logprobs(row["top_logprobs"]).parts for row in kept)


def test_free_answers_are_asked_for_as_the_question_stands(tmp_path: Path) -> None:
    recipe = recipe_of({"samples": 1}, FREE, elicit=[{"method": "top_logprobs"}])
    assert collect(recipe, tmp_path).requests == 3
    assert all(unpack_logprobs(one.top_logprobs or b"").parts[1:] == () for one in samples(tmp_path))


def test_a_teacher_without_logprobs_is_found_out_early(tmp_path: Path) -> None:
    app = chat_app(lambda body, count: "The answer is 5.")
    skills = [ARITHMETIC[0] | {"questions": 200}]
    with serving(app) as url, pytest.raises(UserError, match="sent no logprobs in 16 answers; take a teacher"):
        recipe = recipe_of({"base_url": url, "concurrency": 4}, skills, elicit=[{"method": "top_logprobs"}])
        collect(recipe, tmp_path)
    assert app.state.counted["count"] < 200


def test_an_answer_that_fails_otherwise_hides_no_teacher_without_logprobs(tmp_path: Path) -> None:
    app = chat_app(lambda body, count: "" if count == 1 else "The answer is 5.")
    skills = [ARITHMETIC[0] | {"questions": 200}]
    with serving(app) as url, pytest.raises(UserError, match="sent no logprobs in 16 answers"):
        recipe = recipe_of({"base_url": url, "concurrency": 4}, skills, elicit=[{"method": "top_logprobs"}])
        collect(recipe, tmp_path)


def test_tokens_that_spell_something_else_are_a_listed_failure(tmp_path: Path) -> None:
    def answer(body: Any, count: int) -> Any:
        assert body["logprobs"] is True and body["top_logprobs"] == 3
        content = [entry(b"Another", -0.5, [(b"Another", -0.5)])]
        choice = {
            "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "It is 4."},
            "logprobs": {"content": content},
        }  # fmt: skip
        return JSONResponse({"id": "x", "object": "chat.completion", "choices": [choice]})

    with serving(chat_app(answer)) as url:
        recipe = recipe_of({"base_url": url}, ARITHMETIC, elicit=[{"method": "top_logprobs", "k": 3}])
        collect(recipe, tmp_path)
    assert {(one.reason, one.detail) for one in samples(tmp_path)} == {
        ("no_logprobs", "the tokens sent do not spell the answer")
    }
