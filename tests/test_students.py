"""Students: the vocabulary, and what the tokens let them see."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pocketstill.errors import UserError
from pocketstill_pipeline import problems
from pocketstill_pipeline.packing import IGNORED, Collate, encode, pack
from pocketstill_pipeline.recipe import NewStudent
from pocketstill_pipeline.students import add_words, completion, new_student, new_tokenizer


def texts(count: int = 300) -> list[str]:
    rng = random.Random(5)
    return [problems.sample(skill, rng).question for _ in range(count // 5) for skill in problems.SKILLS]


def rows(count: int) -> list[dict[str, object]]:
    rng = random.Random(6)
    made = []
    for _ in range(count):
        problem = problems.sample("arithmetic", rng)
        solution = problems.solve(problem.question, rng)
        assert solution is not None
        messages = [{"role": "user", "content": problem.question}]
        made.append({"messages": messages, "rationale": solution.rationale, "answer": solution.answer})
    return made


def test_names_never_met_and_numbers_are_seen_letter_by_letter() -> None:
    tokenizer = new_tokenizer(texts(), 800, "chat")
    assert tokenizer.tokenize("coin flip: Zquorx 1984") == [
        "c", "o", "i", "n", "Ġflip", ":", "Ġ", "Z", "q", "u", "o", "r", "x", "Ġ", "1", "9", "8", "4",
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer("A coin is  heads up.\n42 £ 😀")["input_ids"]) == "A coin is  heads up.\n42 £ 😀"


def test_vocabulary_is_the_same_in_another_process() -> None:
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from test_students import texts; "
        "from pocketstill_pipeline.students import new_tokenizer; "
        "print(json.dumps(new_tokenizer(texts(), 800, 'chat').get_vocab(), sort_keys=True))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_only_the_completion_is_learnt_and_texts_do_not_see_each_other() -> None:
    tokenizer = new_tokenizer(texts(), 800, "chat")
    encoded = encode(tokenizer, "chat", rows(12))
    packed = pack(encoded, 256, random.Random(0))
    batch = Collate(256, tokenizer.pad_token_id)(packed)
    first, ((prompt, _),) = packed[0][0]
    size = len(first)
    assert batch["labels"][0, :prompt].eq(IGNORED).all()
    assert batch["labels"][0, prompt:size].tolist() == first[prompt:]
    assert first[-1] == tokenizer.eos_token_id
    assert len(packed[0]) > 1 and batch["position_ids"][0, size] == 0
    mask = batch["attention_mask"][0, 0]
    assert mask[size, size] == 0 and (mask[size, :size] < -1e30).all() and (mask[0, 1:] < -1e30).all()
    assert sorted(len(ids) for row in packed for ids, _ in row) == sorted(len(ids) for ids, _ in encoded)


def test_packed_loss_is_the_loss_of_the_texts_alone() -> None:
    import torch

    tokenizer = new_tokenizer(texts(), 800, "chat")
    torch.manual_seed(0)
    model = new_student(NewStudent(hidden_size=64, layers=2, heads=2, kv_heads=2, intermediate_size=64), tokenizer, 256)
    model.set_attn_implementation("eager")
    packed = pack(encode(tokenizer, "chat", rows(4)), 256, random.Random(0))[:1]
    assert len(packed[0]) > 1
    with torch.no_grad():
        together = model(**Collate(256, tokenizer.pad_token_id)(packed)).loss.item()
        total = count = 0.0
        for ids, ((prompt, _),) in packed[0]:
            labels = torch.tensor([[IGNORED] * prompt + ids[prompt:]])
            learnt = len(ids) - prompt
            total += model(input_ids=torch.tensor([ids]), labels=labels).loss.item() * learnt
            count += learnt
    assert together == pytest.approx(total / count, rel=1e-4)


def test_added_words_become_one_token_each_that_starts_as_the_mean_of_its_letters() -> None:
    import torch

    tokenizer = new_tokenizer(texts(), 800, "chat")
    torch.manual_seed(0)
    model = new_student(NewStudent(hidden_size=64, layers=1, heads=2, kv_heads=2, intermediate_size=64), tokenizer, 256)
    pieces = tokenizer("quartz", add_special_tokens=False)["input_ids"]
    mean = model.get_input_embeddings().weight[pieces].mean(0).detach().clone()
    tokenizer, added = add_words(model, tokenizer, ["quartz clock"] * 5, 10)
    ids = tokenizer("quartz", add_special_tokens=False)["input_ids"]
    assert added == 2 and len(ids) == 1 and len(pieces) == 6
    assert torch.allclose(model.get_input_embeddings().weight[ids[0]], mean)
    assert model.config.vocab_size >= len(tokenizer)


def test_added_words_are_refused_where_the_tokenizer_merges() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    merging = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(UserError, match="add_words"):
        add_words(None, merging, ["a"], 1)


def test_templates_of_the_two_forms() -> None:
    assert completion("finetune_cot", "2 + 2 = 4.", "4") == " 2 + 2 = 4. --> 4"
    assert completion("chat", "2 + 2 = 4.", "4") == "2 + 2 = 4.\nAnswer: 4"
    assert completion("chat", "", "{}") == "{}"
    question = [{"role": "user", "content": "2 + 2?"}]
    for template, prompt in (("finetune_cot", "2 + 2? ###"), ("chat", "<|user|>2 + 2?<|end|><|assistant|>")):
        tokenizer = new_tokenizer(texts(50), 700, template)
        assert tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True) == prompt
