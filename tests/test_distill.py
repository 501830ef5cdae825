"""Distill: it learns, it resumes after a kill with the same result, and it says what is wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pocketstill.errors import UserError
from pocketstill_pipeline import problems
from pocketstill_pipeline.distill import distill, train, weighted_pass
from pocketstill_pipeline.optimizers import make_optimizer, schedule, split_parameters
from pocketstill_pipeline.recipe import NewStudent, Recipe, Skill, Student, Train

SMALL = NewStudent(hidden_size=64, layers=2, heads=2, kv_heads=2, intermediate_size=128, vocabulary=700)


def recipe(**settings: Any) -> Recipe:
    settings = {"tokens": 20_000, "batch_tokens": 1024, "compile": False} | settings
    return Recipe(
        name="t",
        skills=[Skill(name="tool_call", kind="json")],
        student=Student(context_length=256, new=SMALL),
        train=Train(**settings),
    )


def rows(count: int = 400) -> list[dict[str, Any]]:
    rng = random.Random(1)
    made = []
    for _ in range(count):
        problem = problems.sample("tool_call", rng)
        messages = [{"role": "user", "content": problem.question}]
        made.append({"messages": messages, "rationale": "", "answer": problem.gold})
    return made


def test_training_lowers_the_loss_and_leaves_student_and_curve(tmp_path: Path) -> None:
    result = train(recipe(tokens=60_000), rows(), tmp_path, inputs={})
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in curve if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert result.tokens >= 55_000 and result.dev_loss is not None
    assert (result.student / "model.safetensors").is_file() and (result.student / "tokenizer.json").is_file()
    assert not (tmp_path / "checkpoints").exists()


def test_budget_that_leaves_out_the_longest_example_still_fits_the_rows(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "Zq " * 70}], "rationale": "", "answer": "x"}
    result = train(recipe(tokens=3_000), [*rows(), *[long] * 8], tmp_path, inputs={})
    assert result.steps >= 1


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_distill import recipe, rows, train
train(recipe(tokens=40_000, checkpoints=8), rows(), Path(sys.argv[2]), inputs={})
"""


def child(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(out)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def test_killed_and_run_again_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert child(whole).wait(120) == 0
    process = child(cut)
    deadline = time.monotonic() + 120
    while not list(cut.glob("checkpoints/checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not (cut / "manifest.json").exists()
    assert child(cut).wait(120) == 0
    assert (cut / "student/model.safetensors").read_bytes() == (whole / "student/model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (cut / "curve.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_muon_takes_the_hidden_matrices_and_nothing_else() -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    for tied in (True, False):
        config.tie_word_embeddings = tied
        model = AutoModelForCausalLM.from_config(config)
        matrices, rest = split_parameters(model)
        assert len(matrices) == 7 and all(p.ndim == 2 for p in matrices)
        assert len(matrices) + len(rest) == len(list(model.parameters()))
    optimizer = make_optimizer(model, Train(learning_rate=0.02, adamw_learning_rate=0.001))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.0005]
    assert scheduler.get_last_lr() == [0.01, 0.0005]


def test_schedule_warms_up_stays_and_falls_to_zero() -> None:
    factor = schedule(Train(warmup=0.1, decay=0.5), 100)
    assert [factor(0), factor(9), factor(40), factor(75), factor(100)] == [0.1, 1.0, 1.0, 0.5, 0.0]


def test_checkpoint_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    broken = recipe().model_copy(update={"student": Student(base=str(tmp_path / "nowhere"))})
    with pytest.raises(UserError, match=r"student\.base"):
        train(broken, rows(5), tmp_path / "out", inputs={})


def test_distill_before_curate_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `pocketstill curate` first"):
        distill(recipe(), tmp_path, tmp_path / "out")


def test_an_example_is_seen_as_often_as_its_weight() -> None:
    rng = random.Random(3)
    learnt = [(([index], ((0, 1),)), weight) for index, weight in enumerate((2.5, 1.0, 0.25, 3.0))]
    seen = Counter(ids[0] for _ in range(2000) for ids, _ in weighted_pass(learnt, rng))
    assert [seen[1], seen[3]] == [2000, 6000]
    assert [seen[0] / 2000, seen[2] / 2000] == pytest.approx([2.5, 0.25], abs=0.04)
