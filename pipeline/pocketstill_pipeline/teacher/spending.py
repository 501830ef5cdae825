"""What a run may cost: every request is reserved for at its worst before it goes out, so that a limit holds."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketstill.errors import UserError
from pocketstill_pipeline.asking import Ask
from pocketstill_pipeline.ledger import Spent
from pocketstill_pipeline.recipe import Budget, Teacher

# Rounding of sums of money must not stop a request that fits exactly.
_GRAIN = 1e-9


class BudgetSpent(UserError):  # noqa: N818 - what happened; no fault of anyone
    """The next request could exceed the recipe's budget."""


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens of the prompt, and of the completion."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The money that a request of so many tokens costs."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def prices_of(teacher: Teacher, share: float = 1.0) -> Prices | None:
    """The recipe's prices, None unless it gives both; `share` of them is paid (batches cost less)."""
    if teacher.price_in is None or teacher.price_out is None:
        return None
    return Prices(teacher.price_in * share, teacher.price_out * share)


@dataclass(frozen=True)
class Worst:
    """The most tokens that a request can take."""

    prompt: int
    completion: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


def worst_of(ask: Ask) -> Worst:
    """The most that `ask` can take: a tokenizer that works on bytes makes no more tokens of a prompt than it has bytes.

    The keys and quotes of its JSON stand for what the server's chat template adds.
    """
    return _worst(ask.messages, ask.max_tokens, ask.extra)


def _worst(messages: Any, max_tokens: int, extra: Mapping[str, Any]) -> Worst:
    asked = [messages, *(extra[name] for name in ("tools", "response_format") if name in extra)]
    return Worst(len(json.dumps(asked, ensure_ascii=False).encode()), max_tokens * int(extra.get("n") or 1))


class Spending:
    """Money and tokens spent, reserved and left.

    Args:
        money: most that may be spent, in the money of `prices`; None for no limit.
        tokens: most tokens that may be used, prompts and completions together; None for no limit.
        prices: what tokens cost.
        before: what the run's ledger holds already, which counts.

    Raises:
        UserError: money is limited and there are no prices to count it by.
    """

    def __init__(
        self,
        money: float | None = None,
        tokens: int | None = None,
        prices: Prices | None = None,
        before: Spent | None = None,
    ) -> None:
        if money is not None and prices is None:
            raise UserError(
                "budget.money needs the teacher's price_in and price_out, money for a million tokens; "
                "give both, or limit budget.tokens instead"
            )
        self.money_limit, self.token_limit, self.prices = money, tokens, prices
        self.money, self.tokens, self.answered = 0.0, 0, 0
        self._reserved_money, self._reserved_tokens = 0.0, 0
        self._out = 0
        self._queue: deque[tuple[Worst, asyncio.Future[None]]] = deque()
        self._stopped: str | None = None
        if before is not None:
            self._count_before(before)

    @classmethod
    def of(cls, budget: Budget, teacher: Teacher, before: Spent) -> Spending | None:
        """What a recipe allows; None when it sets no limit.

        Raises:
            UserError: money is limited, but the teacher's prices are not both given.
        """
        if budget.money is None and budget.tokens is None:
            return None
        share = teacher.batch_price if teacher.mode == "batch" else 1.0
        return cls(budget.money, budget.tokens, prices_of(teacher, share), before)

    async def reserve(self, worst: Worst) -> None:
        """Set aside the most that a request can take; waits for those on their way where it does not fit beside them.

        Every `reserve` that returns is followed by one `settle`.

        Raises:
            BudgetSpent: it does not fit even when all others have come to their end.
        """
        if self._stopped is not None:
            raise BudgetSpent(self._stopped)
        if not self._queue and self._fits(worst):
            self.take(worst)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((worst, turn))
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.settle(worst, 0, 0)
            raise

    def settle(self, worst: Worst, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Replace what was reserved by what was used: 0 for what never came, all of it where nothing was reported."""
        prompt = worst.prompt if prompt_tokens is None else prompt_tokens
        completion = worst.completion if completion_tokens is None and prompt_tokens is None else completion_tokens or 0
        self._out -= 1
        self._reserved_tokens -= worst.tokens
        self._reserved_money -= self._cost(worst.prompt, worst.completion)
        self.tokens += prompt + completion
        self.money += self._cost(prompt, completion)
        self.answered += prompt + completion > 0
        self._next()

    def _fits(self, worst: Worst) -> bool:
        tokens = self.tokens + self._reserved_tokens + worst.tokens
        if self.token_limit is not None and tokens > self.token_limit:
            return False
        if self.money_limit is None:
            return True
        money = self.money + self._reserved_money + self._cost(worst.prompt, worst.completion)
        return money <= self.money_limit * (1 + _GRAIN)

    def take(self, worst: Worst) -> None:
        """Set aside without asking whether it fits: for a request that is out already."""
        self._out += 1
        self._reserved_tokens += worst.tokens
        self._reserved_money += self._cost(worst.prompt, worst.completion)

    def _next(self) -> None:
        """Let those in that fit now, first come first served; with none on its way, what does not fit never will."""
        while self._queue:
            worst, turn = self._queue[0]
            if turn.done():
                self._queue.popleft()
            elif self._fits(worst):
                self._queue.popleft()
                self.take(worst)
                turn.set_result(None)
            elif self._out == 0:
                self._stop(worst)
            else:
                return

    def _stop(self, worst: Worst) -> None:
        self._stopped = self._said(worst)
        while self._queue:
            _, turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(BudgetSpent(self._stopped))

    def _said(self, worst: Worst) -> str:
        limits, left = [], []
        if self.money_limit is not None:
            limits.append(f"{self.money:.6g} of {self.money_limit:.6g} money")
            left.append(f"{self._cost(worst.prompt, worst.completion):.6g} money")
        if self.token_limit is not None:
            limits.append(f"{self.tokens:,} of {self.token_limit:,} tokens")
            left.append(f"{worst.tokens:,} tokens")
        return (
            f"budget: {' and '.join(limits)} are spent, {self.answered:,} requests were answered in this run, and the "
            f"next can take {' or '.join(left)}; raise [budget] in the recipe and run again, what was answered is kept"
        )

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return self.prices.of(prompt_tokens, completion_tokens) if self.prices else 0.0

    def _count_before(self, before: Spent) -> None:
        self.money = before.money + self._cost(before.unpriced_prompt, before.unpriced_completion)
        self.tokens = before.prompt_tokens + before.completion_tokens
        for request in before.unreported:
            raw = json.loads(request)
            worst = _worst(raw["messages"], raw["max_tokens"], raw.get("extra") or {})
            self.tokens += worst.tokens
            self.money += self._cost(worst.prompt, worst.completion)
