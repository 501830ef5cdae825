"""Progress of a collection on stderr: rate, yield, cost and time left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .elicit.base import Planned
from .teacher.batch import BatchTally
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
        self._started = time.monotonic()
        self._before, self._sent_before, self._total = 0, 0, 0
        self._samples = self._usable = 0
        self._tallies: Sequence[Tally] = ()

    def __enter__(self) -> Shown:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, name: str, planned: Sequence[Planned], tallies: Sequence[Tally]) -> None:
        """An entry begins; its bar is as long as the most requests that it may send, to teacher and student."""
        self._total = sum(one.requests[1] for one in planned)
        self._started, self._tallies = time.monotonic(), tallies
        self._sent_before = sum(tally.requests for tally in tallies)
        self._before = self._sent_before + sum(tally.from_cache for tally in tallies)
        self._samples = self._usable = 0
        if self._progress is not None:
            self._task = self._progress.add_task(name, total=self._total, said="")

    def finish(self) -> None:
        """The entry is done, with as many requests as it took."""
        if self._progress is not None and self._task is not None:
            self._total = sum(tally.requests + tally.from_cache for tally in self._tallies) - self._before
            self._progress.update(self._task, total=max(self._total, 1), completed=max(self._total, 1))
            self._say()

    def count(self, reason: str | None) -> None:
        """A sample was made; `reason` speaks against it."""
        self._samples += 1
        self._usable += reason is None

    async def follow(self) -> None:
        """Say how it goes, again and again, until it is cancelled."""
        while self._progress is not None:
            self._say()
            await asyncio.sleep(_REFRESH_S)

    def _say(self) -> None:
        assert self._progress is not None and self._task is not None
        tally = self._tallies[0]
        sent, failed, known = (
            sum(getattr(one, name) for one in self._tallies) for name in ("requests", "failed", "from_cache")
        )
        done = sent + known - self._before
        rate = (sent - self._sent_before) / max(time.monotonic() - self._started, 1e-6)
        said = f"{done:,}/{self._total:,} requests, {rate:.0f}/s, {self._usable / max(self._samples, 1):.0%} usable"
        said += f", {failed} failed" if failed else ""
        if isinstance(tally, BatchTally) and tally.batches:
            said += f", {tally.ready:,} of {tally.in_flight:,} ready in {tally.batches} batches"
        elif tally.rate_limited:
            said += f", {tally.limit} at once after {tally.rate_limited:,} refusals"
        said += f", {known:,} from ledger" if known else ""
        said += f", cost {tally.price:.4f}" if tally.price else ""
        if rate > 0 and done < self._total:
            said += f", {(self._total - done) / rate:.0f} s left"
        self._progress.update(self._task, completed=done, said=said)
