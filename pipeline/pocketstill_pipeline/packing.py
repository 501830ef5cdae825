"""Conversations to fixed-length rows of tokens, several a row, that do not see each other."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .students import completion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
Encoded = tuple[list[int], int]


def encode(tokenizer: PreTrainedTokenizerBase, template: str, rows: Iterable[dict[str, Any]]) -> list[Encoded]:
    """Token ids of prompt and completion, and how many of them are the prompt (which is not learnt)."""
    encoded: list[Encoded] = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        said = completion(template, row["rationale"], row["answer"])
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = tokenizer(said, add_special_tokens=False)["input_ids"]
        encoded.append(([*head, *tail, tokenizer.eos_token_id], len(head)))
    return encoded


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
            for number, (tokens, prompt) in enumerate(row["texts"] if isinstance(row, dict) else row):
                end = at + len(tokens)
                ids[r, at:end] = torch.tensor(tokens)
                labels[r, at + prompt : end] = ids[r, at + prompt : end]
                positions[r, at:end] = torch.arange(len(tokens))
                texts[r, at:end] = number
                at = end
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        seen = (texts[:, :, None] == texts[:, None, :]) & causal
        mask = torch.zeros(len(rows), 1, self.length, self.length).masked_fill_(
            ~seen[:, None], torch.finfo(torch.float32).min
        )
        return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask}
