"""Progress of a collection on stderr: rate, yield, cost and time left."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .elicit.base import Planned
from .teacher.client import Tally

_REFRESH_S = 0.25


class Shown:
    """A bar an entry: requests done, rate, share of usable samples, failures, cost. Without a console, nothing."""

    def __init__(self, console: Console | None) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, refresh_per_second=4) if console else None
        self._task: TaskID | None = None
        self._started, self._next = time.monotonic(), 0.0
        self._before, self._sent_before, self._total = 0, 0, 0
        self._samples = self._usable = 0

    def __enter__(self) -> Shown:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, name: str, planned: Sequence[Planned], tally: Tally) -> None:
        """An entry begins; its bar is as long as the most requests that it may send."""
        self._total = sum(one.requests[1] for one in planned if one.who == "teacher")
        self._started, self._next = time.monotonic(), 0.0
        self._before, self._sent_before = tally.requests + tally.from_cache, tally.requests
        self._samples = self._usable = 0
        if self._progress is not None:
            self._task = self._progress.add_task(name, total=self._total, said="")

    def finish(self, tally: Tally) -> None:
        """The entry is done, with as many requests as it took."""
        if self._progress is not None and self._task is not None:
            self._total = tally.requests + tally.from_cache - self._before
            self._progress.update(self._task, total=max(self._total, 1), completed=max(self._total, 1))
            self._say(tally)

    def update(self, tally: Tally, reason: str | None) -> None:
        """A sample was made; `reason` speaks against it."""
        self._samples += 1
        self._usable += reason is None
        now = time.monotonic()
        if self._progress is None or self._task is None or now < self._next:
            return
        self._next = now + _REFRESH_S
        self._say(tally)

    def _say(self, tally: Tally) -> None:
        assert self._progress is not None and self._task is not None
        now = time.monotonic()
        done = tally.requests + tally.from_cache - self._before
        rate = (tally.requests - self._sent_before) / max(now - self._started, 1e-6)
        said = f"{done:,}/{self._total:,} requests, {rate:.0f}/s, {self._usable / max(self._samples, 1):.0%} usable"
        said += f", {tally.failed} failed" if tally.failed else ""
        said += f", {tally.from_cache:,} from ledger" if tally.from_cache else ""
        said += f", cost {tally.price:.4f}" if tally.price else ""
        if rate > 0 and done < self._total:
            said += f", {(self._total - done) / rate:.0f} s left"
        self._progress.update(self._task, completed=done, said=said)
