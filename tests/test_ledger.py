"""The ledger: what is answered stays answered, whatever happens to the process or the disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import string
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pocketstill.errors import UserError
from pocketstill_pipeline.compact import packed, slim, unpacked
from pocketstill_pipeline.ledger import Ledger, Row, Spent, canonical, request_key

RESPONSE = '{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'


def done(key: str, response: str = RESPONSE) -> Row:
    return Row(key, "done", "{}", response, 10, 5, 0.25, 0.1)


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_key_ignores_the_order_of_fields() -> None:
    a = request_key(canonical({"model": "m", "messages": [{"role": "user", "content": "é"}], "sample": 0}))
    b = request_key(canonical({"sample": 0, "messages": [{"content": "é", "role": "user"}], "model": "m"}))
    assert a == b


def test_key_changes_with_the_sample() -> None:
    assert request_key(canonical({"sample": 0})) != request_key(canonical({"sample": 1}))


def test_answer_is_there_after_reopening(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(ledger.finish(done("k")))
    with Ledger(tmp_path / "l.sqlite", readonly=True) as ledger:
        assert ledger.get("k") == done("k")
        assert [row.key for row in ledger.rows()] == ["k"]


def test_closed_ledger_is_one_file(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(ledger.finish(done("k")))
    with Ledger(tmp_path / "l.sqlite", readonly=True) as ledger:
        assert ledger.get("k") == done("k")
    assert [path.name for path in tmp_path.iterdir()] == ["l.sqlite"]


def test_request_in_flight_is_pending(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.begin("k", "{}")
    with Ledger(tmp_path / "l.sqlite") as ledger:
        row = ledger.get("k")
        assert row is not None and row.state == "pending"


def test_failure_never_replaces_an_answer(tmp_path: Path) -> None:
    async def both(ledger: Ledger) -> None:
        await ledger.finish(done("k"))
        ledger.begin("k", "{}")
        await ledger.finish(Row("k", "failed", "{}", error="HTTP 500"))

    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(both(ledger))
        assert ledger.get("k") == done("k")


def test_attempts_add_up_over_failures(tmp_path: Path) -> None:
    async def twice(ledger: Ledger) -> None:
        await ledger.finish(Row("k", "failed", "{}", attempts=6, error="HTTP 500"))
        ledger.begin("k", "{}")
        await ledger.finish(done("k"))

    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(twice(ledger))
        row = ledger.get("k")
        assert row is not None and (row.state, row.attempts, row.error) == ("done", 7, None)


def test_tokens_and_price_add_up_over_attempts(tmp_path: Path) -> None:
    """A failed attempt that was paid for stays paid for when the next one is answered."""

    async def thrice(ledger: Ledger) -> None:
        await ledger.finish(Row("k", "failed", "{}", "{}", 10, 5, 0.5, error="no choices"))
        await ledger.finish(Row("k", "failed", "{}", error="HTTP 500"))
        ledger.begin("k", "{}")
        await ledger.finish(done("k"))

    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(thrice(ledger))
        row = ledger.get("k")
        assert row is not None
        assert (row.prompt_tokens, row.completion_tokens, row.price, row.attempts) == (20, 10, 0.75, 3)


def test_spent_adds_up_rows_of_every_state(tmp_path: Path) -> None:
    async def fill(ledger: Ledger) -> None:
        await ledger.finish(done("a"))
        await ledger.finish(Row("b", "failed", "{}", "{}", 10, 5, 0.5, error="no choices"))
        await ledger.finish(Row("c", "failed", "{}", error="HTTP 500"))
        await ledger.finish(Row("d", "done", "{}", RESPONSE, 7, 3))
        await ledger.finish(Row("e", "done", '{"silent": 1}', RESPONSE))
        ledger.begin("b", "{}")
        ledger.begin("f", "{}")

    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(fill(ledger))
    with Ledger(tmp_path / "l.sqlite", readonly=True) as ledger:
        assert ledger.spent() == Spent(0.75, 27, 13, 7, 3, ('{"silent": 1}',))


def test_first_format_is_read_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE requests (key TEXT PRIMARY KEY, state TEXT NOT NULL, request TEXT NOT NULL, response TEXT,"
            " prompt_tokens INTEGER, completion_tokens INTEGER, price REAL, latency_s REAL,"
            " attempts INTEGER NOT NULL DEFAULT 0, error TEXT, changed_at REAL NOT NULL); PRAGMA user_version = 1;"
        )
        values = ("k", "done", "{}", RESPONSE, 10, 5, 0.25, 0.1, 1, None, 0.0)
        connection.execute(f"INSERT INTO requests VALUES ({', '.join('?' * 11)})", values)
        connection.commit()
    with Ledger(path, readonly=True) as ledger:
        assert ledger.get("k") == done("k") and ledger.batches() == []
    with Ledger(path) as ledger:
        ledger.save_batch("b", "running", "{}")
        asyncio.run(ledger.finish(done("l")))
    with Ledger(path, readonly=True) as ledger:
        assert ledger.get("k") == done("k") and ledger.batches() == [("b", "running", "{}")]


def test_batches_are_kept_with_their_last_state(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.save_batch("b2", "running", '{"keys": []}')
        ledger.save_batch("b1", "running", "{}")
        ledger.save_batch("b2", "completed", '{"keys": ["k"]}')
        assert ledger.batches() == [("b1", "running", "{}"), ("b2", "completed", '{"keys": ["k"]}')]


@pytest.mark.parametrize("response", ["x" * 100_000, "€" * 5000, "no JSON " * 900, '"top_logprobs" ' * 900])
def test_large_response_is_stored_compressed_and_read_as_it_was(tmp_path: Path, response: str) -> None:
    body = json.dumps({"choices": [], "said": response})
    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(ledger.finish(done("k", body)))
        row = ledger.get("k")
        assert row is not None and json.loads(row.response or "") == json.loads(body)
        (stored,) = ledger._reader.execute("SELECT response FROM requests").fetchone()
        assert isinstance(stored, bytes) and len(stored) < len(body) / 10


@pytest.mark.parametrize(
    "response",
    [
        json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": ["x"] * 900}]}}]})[:-9],
        json.dumps({"error": {"top_logprobs": "is not served here " * 200}}),
        json.dumps({"choices": 3, "top_logprobs": "x" * 3000}),
        "<script>" + 'let table = {"columns": 2, "rows": 3}\n' * 100,
        json.dumps({"columns": "x" * 3000}),
        json.dumps({"choices": [{"logprobs": ["top_logprobs"] * 300, "columns": 1}]}),
    ],
)
def test_response_that_is_no_completion_is_kept_as_it_came(tmp_path: Path, response: str) -> None:
    """An answer that was cut, an error that names what was asked, a page of the web: all are reasons of a failure."""
    with Ledger(tmp_path / "l.sqlite") as ledger:
        failed = Row("k", "failed", "{}", response, error="the teacher's answer is not JSON")
        asyncio.run(asyncio.wait_for(ledger.finish(failed), 20))
        row = ledger.get("k")
    # White space between the parts of JSON is none of it.
    assert row is not None and "".join((row.response or "").split()) == "".join(response.split())


@pytest.mark.parametrize("more", [{}, {"said": "x" * 3000}, {"top_logprobs": "é" * 3000}])
def test_halves_of_characters_are_kept_as_json_spells_them(tmp_path: Path, more: dict[str, str]) -> None:
    body = {"choices": [{"message": {"content": "\ud83d half, \U0001f642 whole \ude42"}}]} | more
    with Ledger(tmp_path / "l.sqlite") as ledger:
        said = Row("k", "done", "{}", json.dumps(body, ensure_ascii=False), error="no \ud83d")
        asyncio.run(asyncio.wait_for(ledger.finish(said), 20))
        row = ledger.get("k")
    assert row is not None and json.loads(row.response or "") == body and row.error == "no \\ud83d"


def test_whatever_stops_the_writer_is_told_to_those_who_wait(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for tokens in (1 << 70, 1):
            with pytest.raises(OverflowError):
                asyncio.run(asyncio.wait_for(ledger.finish(Row("k", "done", "{}", RESPONSE, tokens)), 20))


def test_damaged_response_is_a_user_error(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(ledger.finish(done("k")))
    with contextlib.closing(sqlite3.connect(tmp_path / "l.sqlite")) as connection:
        connection.execute("UPDATE requests SET response = x'00ff'")
        connection.commit()
    with Ledger(tmp_path / "l.sqlite", readonly=True) as ledger, pytest.raises(UserError, match=r"row k: .*damaged"):
        ledger.get("k")


def with_logprobs(tokens: int, k: int) -> dict[str, Any]:
    """An answer with the k likeliest tokens at every place, drawn from a vocabulary of 32,000 by Zipf's law."""
    rng = random.Random(5)
    letters = random.Random(6)
    words = ["".join(letters.choices(string.ascii_lowercase, k=letters.randint(2, 8))) for _ in range(32_000)]
    vocabulary = [word if index % 3 else f" {word}" for index, word in enumerate(words)]
    shares = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(vocabulary))))
    entries = []
    for _ in range(tokens):
        drawn = list(dict.fromkeys(rng.choices(vocabulary, cum_weights=shares, k=4 * k)))[:k]
        values = sorted((-rng.expovariate(0.2) for _ in drawn), reverse=True)
        top = [
            {"token": token, "logprob": value, "bytes": list(token.encode())}
            for token, value in zip(drawn, values, strict=True)
        ]
        entries.append(dict(top[0] if rng.random() < 0.9 else top[3]) | {"top_logprobs": top})
    message = {"role": "assistant", "content": "".join(entry["token"] for entry in entries)}
    return {"choices": [{"message": message, "logprobs": {"content": entries, "refusal": None}}]}


def test_twenty_log_probabilities_a_token_cost_at_most_150_bytes(tmp_path: Path) -> None:
    tokens = 200
    body = with_logprobs(tokens, 20)
    slim(body)

    async def fill(ledger: Ledger) -> None:
        for index in range(20):
            await ledger.finish(done(f"k{index}", json.dumps(body)))

    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(fill(ledger))
        row = ledger.get("k7")
        assert row is not None and json.loads(row.response or "") == body
    assert (tmp_path / "l.sqlite").stat().st_size / (20 * tokens) <= 150


def test_slim_keeps_what_is_not_redundant() -> None:
    """Bytes that are no text of their own, values to four decimals, and whatever else stands there."""
    half = {"token": "\\xe2\\x82", "logprob": -0.123456, "bytes": [226, 130]}
    body = {"choices": [{"logprobs": {"content": [half | {"top_logprobs": [{"token": "a", "logprob": -9999.0}]}]}}]}
    assert slim(body)
    kept = {"token": "\\xe2\\x82", "logprob": -0.1235, "bytes": [226, 130]}
    assert body["choices"][0]["logprobs"]["content"] == [kept | {"top_logprobs": [{"token": "a", "logprob": -9999.0}]}]
    assert not slim({"choices": [{"logprobs": None}]}) and not slim(None) and not slim({"choices": [3]})


@pytest.mark.parametrize(
    "odd",
    [
        {"token": "a", "logprob": -1.5, "bytes": [255], "top_logprobs": []},
        {"token": "a", "logprob": None, "top_logprobs": []},
        {"token": "a", "logprob": -1.5, "top_logprobs": [{"token": "|~^`\t", "logprob": 0.0}] * 2},
        {"token": "a", "logprob": -1.5, "top_logprobs": [{"token": "", "logprob": -0.12345678}]},
        {"token": "a", "logprob": -1.5},
        {"token": "a", "logprob": -1.5, "top_logprobs": []},
    ],
)
def test_any_log_probabilities_come_back_as_they_were(odd: dict[str, Any]) -> None:
    body = with_logprobs(20, 5)
    body["choices"][0]["logprobs"]["content"].insert(7, odd)
    slim(body)
    stored = packed(json.dumps(body))
    assert isinstance(stored, bytes) and json.loads(unpacked(stored) or "") == body


def test_rows_that_come_together_share_commits(tmp_path: Path) -> None:
    """A thousand answers at once are on the disk in far less than a thousand synced commits would take."""

    async def flood(ledger: Ledger) -> None:
        await asyncio.gather(*(ledger.finish(done(f"k{i}")) for i in range(1000)))

    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger._writer.set_trace_callback(count)
        asyncio.run(flood(ledger))
        assert sum(1 for _ in ledger.rows()) == 1000
    assert commits < 50


def test_everything_confirmed_survives_kill_9(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from pathlib import Path
        from pocketstill_pipeline.ledger import Ledger, Row

        async def main(ledger):
            for i in range(10**6):
                ledger.begin(f"k{i}", "{}")
                await ledger.finish(Row(f"k{i}", "done", "{}", "answer"))
                print(f"k{i}", flush=True)

        with Ledger(Path(sys.argv[1])) as ledger:
            asyncio.run(main(ledger))
    """
    path = tmp_path / "l.sqlite"
    with child(program, str(path)) as process:
        assert process.stdout is not None
        confirmed = [process.stdout.readline().strip() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        confirmed += process.stdout.read().split()
    with Ledger(path) as ledger:
        for key in confirmed:
            row = ledger.get(key)
            assert row is not None and row.state == "done", key


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_full_disk_is_one_line_and_keeps_what_was_answered(tmp_path: Path) -> None:
    program = """
        import asyncio, resource, signal, sys
        from pathlib import Path
        from pocketstill.errors import UserError
        from pocketstill_pipeline.ledger import Ledger, Row

        async def main(ledger):
            for i in range(10**6):
                await ledger.finish(Row(f"k{i}", "done", "{}", "x" * 20000))
                print(f"k{i}", flush=True)

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            with Ledger(Path(sys.argv[1])) as ledger:
                asyncio.run(main(ledger))
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    """
    path = tmp_path / "l.sqlite"
    with child(program, str(path)) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.count("\n") == 1 and "free some space" in err
    assert out.split()
    with Ledger(path) as ledger:
        assert all(ledger.get(key) is not None for key in out.split())
        asyncio.run(ledger.finish(done("later")))


def test_damaged_file_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    path.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(UserError, match=r"l\.sqlite: .*damaged"):
        Ledger(path)
    assert path.read_bytes() == b"not a database at all, " * 100


def test_missing_file_to_read_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unable to open"):
        Ledger(tmp_path / "none.sqlite", readonly=True)


def test_second_process_is_refused(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from pocketstill_pipeline.ledger import Ledger

        ledger = Ledger(Path(sys.argv[1]))
        print("open", flush=True)
        sys.stdin.read()
    """
    with child(program, str(tmp_path / "l.sqlite")) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="another process"):
            Ledger(tmp_path / "l.sqlite")
        process.kill()
    Ledger(tmp_path / "l.sqlite").close()


def test_newer_format_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "l.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
    with pytest.raises(UserError, match="format 99"):
        Ledger(tmp_path / "l.sqlite")
