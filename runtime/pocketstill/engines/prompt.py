"""What both engines ask of a prompt before it costs anything."""

from __future__ import annotations

from collections.abc import Sequence

from pocketstill.errors import UserError


def room_for(ids: Sequence[int], max_new_tokens: int, context_length: int) -> int:
    """How many new tokens fit: `max_new_tokens`, or what the context leaves.

    Raises:
        UserError: when the prompt is empty or fills the context.
    """
    if not len(ids):
        raise UserError("the prompt is empty; give at least one token")
    left = context_length - len(ids)
    if left < 1:
        raise UserError(
            f"the prompt is {len(ids)} tokens long, and the model's context is {context_length}: shorten the "
            "question, or drop earlier turns"
        )
    return min(max_new_tokens, left)
