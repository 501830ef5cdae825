"""Training k-shot: demonstrations before the query, their answers learnt or only read, as many as the recipe says."""

from __future__ import annotations

from typing import Any

import pytest

from pocketstill_pipeline.packing import IGNORED, Collate, encode
from pocketstill_pipeline.students import new_tokenizer

SHOWN = [("ab", "ba"), ("cd", "dc"), ("ef", "fe")]


def turns(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


ROW: dict[str, Any] = {
    "demonstrations": turns(SHOWN), "messages": [{"role": "user", "content": "gh"}], "rationale": "", "answer": "hg",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return new_tokenizer(["ab"], 300, "chat")


def learnt(tokenizer: Any, **options: Any) -> tuple[str, list[str]]:
    """The whole text of the row, and the pieces of it that are learnt."""
    ((ids, spans),) = encode(tokenizer, "chat", [ROW], **options)
    return tokenizer.decode(ids), [tokenizer.decode(ids[start:end]) for start, end in spans]


def test_demonstrations_stand_before_the_query_and_every_answer_is_learnt(tokenizer: Any) -> None:
    text, pieces = learnt(tokenizer)
    before = "".join(f"<|user|>{asked}<|end|><|assistant|>{said}<|end|>" for asked, said in SHOWN)
    assert text == f"{before}<|user|>gh<|end|><|assistant|>hg<|end|>"
    assert pieces == ["ba<|end|>", "dc<|end|>", "fe<|end|>", "hg<|end|>"]


def test_demonstrations_can_be_read_without_being_learnt(tokenizer: Any) -> None:
    whole, _ = learnt(tokenizer)
    assert learnt(tokenizer, learn_demonstrations=False) == (whole, ["hg<|end|>"])


@pytest.mark.parametrize(("shots", "kept"), [(0, []), (2, SHOWN[1:]), (3, SHOWN), (9, SHOWN), ("all", SHOWN)])
def test_a_row_keeps_as_many_demonstrations_as_the_recipe_says(tokenizer: Any, shots: Any, kept: Any) -> None:
    text, pieces = learnt(tokenizer, shots=shots)
    assert text.count("<|user|>") == len(kept) + 1
    assert pieces == [f"{said}<|end|>" for _, said in [*kept, ("", "hg")]]


def test_the_tokens_are_those_of_the_rendered_conversation(tokenizer: Any) -> None:
    ((ids, _),) = encode(tokenizer, "chat", [ROW])
    said = [*ROW["demonstrations"], *ROW["messages"], {"role": "assistant", "content": "hg"}]
    assert ids == tokenizer.apply_chat_template(said, return_dict=False)


def test_a_template_that_writes_earlier_answers_otherwise_leaves_them_unlearnt(tokenizer: Any) -> None:
    other = new_tokenizer(["ab"], 300, "chat")
    other.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper if m.role == 'assistant' else m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    ((ids, spans),) = encode(other, "chat", [ROW])
    assert [other.decode(ids[start:end]) for start, end in spans] == ["hg<|end|>"]
    assert other.decode(ids).startswith("<|user|>ab<|end|><|assistant|>BA<|end|>")


def test_labels_are_the_learnt_spans_alone(tokenizer: Any) -> None:
    encoded = encode(tokenizer, "chat", [ROW, ROW | {"demonstrations": []}])
    batch = Collate(128, tokenizer.pad_token_id)([encoded])
    labels = [token for token in batch["labels"][0].tolist() if token != IGNORED]
    assert tokenizer.decode(labels) == "ba<|end|>dc<|end|>fe<|end|>hg<|end|>hg<|end|>"
