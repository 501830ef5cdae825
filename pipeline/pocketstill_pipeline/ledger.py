"""The ledger: a row a request to the teacher. Journal, cache, resume point and receipt in one SQLite file.

A row is keyed by the hash of all that determines the answer. Only rows in state `done` count as answered; one
that was in flight at a crash stays `pending` and is asked again. Attempts, tokens and price of a row add up over all
that was ever sent for it, whether answered or not. Keys to an API never enter it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError

from .compact import packed, spelled, unpacked

# 1 had every response as text and no batches; it is read as it is, and becomes 2 when it is written to.
SCHEMA_VERSION = 2
_READABLE = (0, 1, 2)
# Long enough to gather what was answered meanwhile into one commit, short enough to lose nothing.
_GATHER_S = 0.005
# How often what is committed is also forced to the disk, against a power cut.
_SYNC_S = 1.0
# A statement takes up to so many rows: for each one the writer has to get the interpreter back from the event loop.
_MOST_ROWS = 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  key TEXT PRIMARY KEY,
  state TEXT NOT NULL CHECK (state IN ('pending', 'done', 'failed')),
  request TEXT NOT NULL,
  response TEXT,
  prompt_tokens INTEGER,
  completion_tokens INTEGER,
  price REAL,
  latency_s REAL,
  attempts INTEGER NOT NULL DEFAULT 0,
  error TEXT,
  changed_at REAL NOT NULL
)"""
_BATCHES = """
CREATE TABLE IF NOT EXISTS batches (
  id TEXT PRIMARY KEY, state TEXT NOT NULL, payload TEXT NOT NULL, changed_at REAL NOT NULL
)"""
# An answer is never overwritten by a later failure, nor by a second crash's pending row.
_BEGIN = """
INSERT INTO requests (key, state, request, changed_at) VALUES {rows}
ON CONFLICT (key) DO UPDATE SET state = 'pending', error = NULL, changed_at = excluded.changed_at
WHERE state <> 'done'"""
_FINISH = """
INSERT INTO requests (key, state, request, response, prompt_tokens, completion_tokens, price, latency_s,
                      attempts, error, changed_at)
VALUES {rows}
ON CONFLICT (key) DO UPDATE SET state = excluded.state, response = excluded.response,
  prompt_tokens = coalesce(requests.prompt_tokens + excluded.prompt_tokens, excluded.prompt_tokens,
                           requests.prompt_tokens),
  completion_tokens = coalesce(requests.completion_tokens + excluded.completion_tokens, excluded.completion_tokens,
                               requests.completion_tokens),
  price = coalesce(requests.price + excluded.price, excluded.price, requests.price),
  latency_s = excluded.latency_s, attempts = requests.attempts + excluded.attempts,
  error = excluded.error, changed_at = excluded.changed_at
WHERE state <> 'done'"""
_BATCH = """
INSERT INTO batches (id, state, payload, changed_at) VALUES {rows}
ON CONFLICT (id) DO UPDATE SET state = excluded.state, payload = excluded.payload, changed_at = excluded.changed_at"""
_COLUMNS = "key, state, request, response, prompt_tokens, completion_tokens, price, latency_s, attempts, error"


@dataclass(frozen=True)
class Row:
    """One request. `request` is its canonical JSON, `response` the body as it was received.

    Given to `finish`, tokens, price and attempts are those of this answer; read from a ledger, the sums over all that
    was sent for the request.
    """

    key: str
    state: str
    request: str
    response: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    price: float | None = None
    latency_s: float | None = None
    attempts: int = 1
    error: str | None = None


@dataclass(frozen=True)
class Spent:
    """What a ledger's rows cost in all: money as it was recorded, and tokens as the teacher reported them.

    `unpriced_prompt` and `unpriced_completion` are the tokens of rows that were recorded without prices; `unreported`
    are the requests of answers whose teacher reported no tokens.
    """

    money: float
    prompt_tokens: int
    completion_tokens: int
    unpriced_prompt: int
    unpriced_completion: int
    unreported: tuple[str, ...]


def canonical(request: dict[str, Any]) -> str:
    """The one JSON text of a request, whatever the order of its keys."""
    return json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def request_key(request_json: str) -> str:
    """SHA-256 of a request's canonical JSON, in hexadecimal."""
    return hashlib.sha256(request_json.encode()).hexdigest()


class Ledger:
    """An open ledger.

    `get` reads on the caller's thread. `finish` hands a row to a writer thread, which commits whatever has
    come in within a few milliseconds as one transaction, and returns when that is committed: so an answer
    outlives this process before it is used (and a power cut a second later), and no commit stalls the
    requests in flight.

    Raises:
        UserError: the file cannot be opened or written, is damaged, or another process is collecting into it.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._broken: Exception | None = None
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._lock: int | None = None
        try:
            if readonly:
                self._reader = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)
                self._check_version(self._reader)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            self._writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            self._writer.execute("PRAGMA journal_mode = WAL")
            # A commit outlives this process without waiting for the disk; `_sync` bounds what a power cut takes.
            self._writer.execute("PRAGMA synchronous = NORMAL")
            self._check_version(self._writer)
            self._writer.execute(_SCHEMA)
            self._writer.execute(_BATCHES)
            self._writer.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._reader = sqlite3.connect(path, isolation_level=None, timeout=10)
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise _mendable(path, error) from error
        self._thread = threading.Thread(target=self._write_batches, name="ledger", daemon=True)
        self._thread.start()

    def _check_version(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in _READABLE:
            raise UserError(
                f"ledger {self.path} has format {version}, this version reads {SCHEMA_VERSION}; "
                "use the version of pocketstill that made it, or another run folder"
            )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> Row | None:
        """The row of a request, in whatever state; None if it was never asked."""
        try:
            found = self._reader.execute(f"SELECT {_COLUMNS} FROM requests WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise _mendable(self.path, error) from error
        return _row(self.path, found) if found else None

    def rows(self) -> Iterator[Row]:
        """All rows, in the order of their keys."""
        try:
            for found in self._reader.execute(f"SELECT {_COLUMNS} FROM requests ORDER BY key"):
                yield _row(self.path, found)
        except sqlite3.Error as error:
            raise _mendable(self.path, error) from error

    def spent(self) -> Spent:
        """What all rows together cost, answered or not."""
        unpriced = "price IS NULL AND prompt_tokens IS NOT NULL"
        query = (
            "SELECT total(price), total(prompt_tokens), total(completion_tokens), "
            f"total(prompt_tokens) FILTER (WHERE {unpriced}), total(completion_tokens) FILTER (WHERE {unpriced}) "
            "FROM requests"
        )
        silent = "SELECT request FROM requests WHERE state = 'done' AND prompt_tokens IS NULL AND price IS NULL"
        try:
            found = self._reader.execute(query).fetchone()
            unreported = tuple(request for (request,) in self._reader.execute(silent))
        except sqlite3.Error as error:
            raise _mendable(self.path, error) from error
        prompt, completion, unpriced_prompt, unpriced_completion = (int(count) for count in found[1:])
        return Spent(found[0], prompt, completion, unpriced_prompt, unpriced_completion, unreported)

    def batches(self) -> list[tuple[str, str, str]]:
        """Every batch that was saved, as (id, state, payload), in the order of their ids."""
        try:
            if not self._reader.execute("SELECT 1 FROM sqlite_master WHERE name = 'batches'").fetchone():
                return []
            return list(self._reader.execute("SELECT id, state, payload FROM batches ORDER BY id"))
        except sqlite3.Error as error:
            raise _mendable(self.path, error) from error

    def save_batch(self, batch_id: str, state: str, payload: str) -> None:
        """Record a batch of requests, or its new state, and return when that is committed.

        Raises:
            UserError: it could not be written.
        """
        saved: Future[None] = Future()
        self._put(_Write(_BATCH, (batch_id, state, payload, time.time()), saved))
        saved.result()

    def begin(self, key: str, request: str) -> None:
        """Note that a request goes out now; does not wait for the disk."""
        self._put(_Write(_BEGIN, (key, "pending", request, time.time())))

    async def finish(self, row: Row) -> None:
        """Record an answer (`done`) or a failure (`failed`), and return when it is committed.

        Raises:
            UserError: it could not be written (a full disk).
        """
        response, error = (None if text is None else spelled(text) for text in (row.response, row.error))
        values = (
            row.key, row.state, row.request, response, row.prompt_tokens, row.completion_tokens,
            row.price, row.latency_s, row.attempts, error, time.time(),
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        committed: asyncio.Future[None] = loop.create_future()
        self._put(_Write(_FINISH, values, committed))
        await committed

    def close(self) -> None:
        """Commit what is queued and close; the file is then one file, without its write-ahead log."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
            self._reader.close()
            # Without its log the file opens from a read-only folder too. Should this fail, the log stays, no more.
            with suppress(sqlite3.Error):
                self._writer.execute("PRAGMA journal_mode = DELETE")
        self._release()

    def _release(self) -> None:
        for name in ("_reader", "_writer"):
            connection = self.__dict__.pop(name, None)
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _put(self, write: _Write) -> None:
        if self._broken is not None:
            raise self._broken
        self._queue.put(write)

    def _write_batches(self) -> None:
        closing, synced = False, time.monotonic()
        while not closing:
            batch = [self._queue.get()]
            if batch[0] is not None:
                time.sleep(_GATHER_S)
            while not self._queue.empty():
                batch.append(self._queue.get())
            closing = None in batch
            writes = [write for write in batch if write is not None]
            if self._broken is None:
                self._broken = self._commit(writes)
            _settle(writes, self._broken)
            if self._broken is None and time.monotonic() - synced > _SYNC_S:
                self._sync()
                synced = time.monotonic()

    def _sync(self) -> None:
        # A failure here loses nothing: the next commit or the next opening meets it again.
        with suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _commit(self, writes: list[_Write]) -> Exception | None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for statement in (_BEGIN, _FINISH, _BATCH):
                rows = [write.values for write in writes if write.statement is statement]
                while rows:
                    # Powers of two: few different statements to prepare.
                    size = min(_MOST_ROWS, 1 << (len(rows).bit_length() - 1))
                    some, rows = rows[:size], rows[size:]
                    self._writer.execute(*_with_rows(statement, some))
            self._writer.execute("COMMIT")
        except Exception as error:
            # Whatever it is, those who wait for the commit have to know: this thread is all that could tell them.
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            return _mendable(self.path, error) if isinstance(error, sqlite3.Error) else error
        return None


@dataclass(frozen=True)
class _Write:
    statement: str
    values: tuple[Any, ...]
    committed: asyncio.Future[None] | Future[None] | None = None


def _with_rows(statement: str, rows: list[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """A statement for so many rows at once, and its values; responses as they are stored."""
    if statement is _FINISH:
        rows = [(*row[:3], None if row[3] is None else packed(row[3]), *row[4:]) for row in rows]
    one = f"({', '.join('?' * len(rows[0]))})"
    return statement.format(rows=", ".join([one] * len(rows))), [value for row in rows for value in row]


def _row(path: Path, found: tuple[Any, ...]) -> Row:
    try:
        return Row(*(*found[:3], unpacked(found[3]), *found[4:]))
    except ValueError as error:
        raise UserError(f"ledger {path}: row {found[0]}: {error}; restore a copy, or delete that row") from None


def _settle(writes: list[_Write], error: Exception | None) -> None:
    futures: list[asyncio.Future[None]] = []
    for write in writes:
        if isinstance(write.committed, asyncio.Future):
            futures.append(write.committed)
        elif write.committed is not None:
            write.committed.set_result(None) if error is None else write.committed.set_exception(error)

    def tell() -> None:
        for future in futures:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    if futures:
        # The loop may be gone already when a run was interrupted; the row is on the disk all the same.
        with suppress(RuntimeError):
            futures[0].get_loop().call_soon_threadsafe(tell)


def _lock(path: Path) -> int | None:
    """Hold the folder against a second collecting process; the system lets go of it when this one dies."""
    try:
        import fcntl
    except ImportError:
        return None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        said = "another process is collecting into it; wait for it, or stop it"
        raise UserError(f"ledger {path}: {said}") from None
    return folder


def _mendable(path: Path, error: Exception) -> UserError:
    said = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    low = said.lower()
    if "full" in low or "disk i/o" in low or "no space" in low:
        mend = "free some space and run again; what was answered is kept"
    elif "readonly" in low or "unable to open" in low or "denied" in low or "read-only" in low:
        mend = "make the folder and the file writable, or give another run folder"
    elif "malformed" in low or "not a database" in low:
        mend = "the file is damaged; restore a copy, or move it away and have the requests asked anew"
    elif "locked" in low:
        mend = "another process holds it; wait for it, or stop it"
    else:
        mend = "check the file and the disk"
    return UserError(f"ledger {path}: {said}; {mend}")
