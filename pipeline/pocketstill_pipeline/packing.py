"""Conversations to fixed-length rows of tokens, several a row, that do not see each other."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .students import completion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
# Token ids, and which spans of them are learnt, as (start, end).
Encoded = tuple[list[int], tuple[tuple[int, int], ...]]
Shots = int | Literal["all"]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    rows: Iterable[dict[str, Any]],
    *,
    shots: Shots = "all",
    learn_demonstrations: bool = True,
) -> list[Encoded]:
    """Token ids of prompt and completion, and which of them are learnt.

    Args:
        tokenizer: its chat template renders the turns.
        template: the form of the completion, see `students.completion`.
        rows: `messages`, `rationale`, `answer`, and `demonstrations` (turns that go before the messages) or none.
        shots: the most demonstrations that a row keeps, the ones nearest to its query.
        learn_demonstrations: whether what demonstrations answer is learnt too. Behind i of them each is an i-shot
            example of its own, so that a row teaches k + 1 answers instead of one.
    """
    encoded: list[Encoded] = []
    for row in rows:
        shown = list(row.get("demonstrations") or [])
        shown = shown if shots == "all" else shown[len(shown) - 2 * min(shots, len(shown) // 2) :]
        turns = [*shown, *row["messages"]]
        answered = list(range(1, len(shown), 2)) if learn_demonstrations else []
        ids, spans = _prompt(tokenizer, turns, answered)
        start = len(ids)
        said = completion(template, row["rationale"], row["answer"])
        ids += [*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        encoded.append((ids, (*spans, (start, len(ids)))))
    return encoded


def _prompt(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], answered: list[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a rendered conversation, and the spans of the answered turns with the token that ends each."""

    def render(some: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=True))

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    text, end = render(turns), str(tokenizer.eos_token)
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for index in answered:
        head = render(turns[:index])
        whole = head + turns[index]["content"] + end
        # A template that writes earlier turns otherwise than later ones has no place for it; then it is only read.
        if len(head) < at or not text.startswith(whole):
            continue
        ids += tokens(text[at : len(head)])
        learnt = tokens(text[len(head) : len(whole)])
        spans.append((len(ids), len(ids) + len(learnt)))
        ids += learnt
        at = len(whole)
    return ids + tokens(text[at:]), spans


def pack(encoded: Sequence[Encoded], length: int, rng: random.Random) -> list[list[Encoded]]:
    """Fill rows of `length` tokens in random order, first fit among the open rows; too long ones are left out."""
    order = [item for item in encoded if len(item[0]) <= length]
    rng.shuffle(order)
    rows: list[list[Encoded]] = []
    free: list[int] = []
    open_rows: list[int] = []
    for item in order:
        size = len(item[0])
        place = next((index for index in open_rows if free[index] >= size), None)
        if place is None:
            rows.append([])
            free.append(length)
            place = len(rows) - 1
            open_rows.append(place)
        rows[place].append(item)
        free[place] -= size
        open_rows = [index for index in open_rows if free[index] >= 16][-24:]
    return rows


class Collate:
    """Rows to tensors: ids, positions, labels (B, T), and an additive mask (B, 1, T, T) that keeps texts apart."""

    def __init__(self, length: int, pad_id: int) -> None:
        self.length = length
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[list[Encoded] | dict[str, Any]]) -> dict[str, Tensor]:
        import torch

        shape = (len(rows), self.length)
        ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)
        texts = torch.full(shape, -1)
        for r, row in enumerate(rows):
            at = 0
            for number, (tokens, spans) in enumerate(row["texts"] if isinstance(row, dict) else row):
                end = at + len(tokens)
                ids[r, at:end] = torch.tensor(tokens)
                for start, stop in spans:
                    labels[r, at + start : at + stop] = ids[r, at + start : at + stop]
                positions[r, at:end] = torch.arange(len(tokens))
                texts[r, at:end] = number
                at = end
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        seen = (texts[:, :, None] == texts[:, None, :]) & causal
        mask = torch.zeros(len(rows), 1, self.length, self.length).masked_fill_(
            ~seen[:, None], torch.finfo(torch.float32).min
        )
        return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask}
