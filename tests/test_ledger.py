"""The ledger: what is answered stays answered, whatever happens to the process or the disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pocketstill.errors import UserError
from pocketstill_pipeline.ledger import Ledger, Row, canonical, request_key

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
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(tmp_path / "l.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
    with pytest.raises(UserError, match="format 99"):
        Ledger(tmp_path / "l.sqlite")
