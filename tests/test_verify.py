from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import SKILLS

from pocketstill.bundle import SUITE, Bundle, write_bundle_json
from pocketstill.errors import BundleError, EngineError, UserError
from pocketstill.model import load
from pocketstill.stats import wilson
from pocketstill.verify import verify


def remade(source: Path, folder: Path, rows: list[dict[str, Any]], skills: dict[str, Any]) -> Path:
    """The same bundle with another suite and other gates."""
    shutil.copytree(source, folder)
    (folder / SUITE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    old = Bundle.load(source)
    write_bundle_json(
        folder,
        name=old.name,
        variants=old.variants,
        default=old.default,
        stop_ids=old.stop_ids,
        generation=old.generation,
        context_length=old.context_length,
        skills=skills,
    )
    return folder


@pytest.fixture(scope="module")
def known(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose golds are what the int4 variant says, but for every fourth of `coin`."""
    rows = []
    with load(tiny_bundle, "onnx-int4") as model:
        for i in range(8):
            for skill in ("coin", "letters"):
                content = f"{skill} {i}"
                said = model.answer(content).answer
                gold = "wrong" if skill == "coin" and i % 4 == 0 else said
                ask = [{"role": "user", "content": content}]
                tags = ["even"] if i % 2 == 0 else []
                rows.append(
                    {
                        "id": f"{skill}{i}",
                        "skill": skill,
                        "messages": ask,
                        "gold": gold,
                        "answer_kind": "text",
                        "tags": tags,
                    }
                )
    skills = {"coin": {"kind": "text", "gate": 0.75}, "letters": {"kind": "text", "gate": 0.9}}
    return remade(tiny_bundle, tmp_path_factory.mktemp("known") / "bundle", rows, skills)


def test_accuracies_gates_and_figures(known: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = verify(known, repetitions=2, on_progress=lambda *p: told.append(p))
    assert found.passed, found.failures
    assert (found.variant, found.engine) == ("onnx-int4", "onnx")
    assert (found.skills["coin"].correct, found.skills["coin"].n) == (6, 8)
    assert (found.skills["coin"].low, found.skills["coin"].high) == wilson(6, 8)
    assert found.skills["letters"].accuracy == 1
    assert found.skills["letters"].token_f1 >= found.skills["coin"].token_f1
    assert found.tags["even"].n == 8
    assert found.network.startswith("denied by ")
    assert found.file_mib == Bundle.load(known).variant().bytes / 2**20
    assert found.load_s > 0
    assert found.speed["ttft_ms"] > 0
    assert found.speed["prefill_tok_s"] > 0
    assert found.speed["decode_tok_s"] > 0
    assert 10 < found.peak_rss_mib < 1000
    assert found.threads == max(found.thread_rates, key=lambda n: found.thread_rates[n]) or found.threads >= 1
    assert [a["correct"] for a in found.answers if a["skill"] == "coin"] == [False, True, True, True] * 2
    assert told[-1] == ("answering", 16, 16)


def test_the_dictionary_is_json_and_has_what_scripts_rely_on(known: Path) -> None:
    found = verify(known, threads=1, repetitions=1).to_dict()
    names = "passed variant file_mib skills load_s ttft_ms prefill_tok_s decode_tok_s peak_rss_mib threads"
    assert set(names.split()) <= set(found)
    assert "answers" not in found
    assert {"n", "accuracy", "low", "high", "gate"} <= set(found["skills"]["coin"])
    json.dumps(found, allow_nan=False)


def test_a_gate_that_is_missed_and_budgets_fail_it(known: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (known / SUITE).read_text(encoding="utf-8").splitlines()]
    skills = {"coin": {"gate": 0.9}, "letters": {"gate": None}, "absent": {"gate": 0.5}}
    folder = remade(known, tmp_path / "b", rows, skills)
    found = verify(folder, threads=1, repetitions=1, memory_mib=5, file_mib=0.001)
    assert not found.passed
    text = " | ".join(found.failures)
    for part in ("coin: accuracy 75.0%", "absent: has a gate", "file:", "memory:"):
        assert part in text
    assert "letters" not in text


def test_both_engines_verify_every_variant(tiny_bundle: Path) -> None:
    for variant in Bundle.load(tiny_bundle).variants:
        found = verify(tiny_bundle, variant=variant.name, threads=1, repetitions=1)
        assert found.passed
        assert sum(skill.n for skill in found.skills.values()) == 12


def test_a_limit_counts_by_skill(tiny_bundle: Path) -> None:
    found = verify(tiny_bundle, limit=2, threads=1, repetitions=1)
    assert {name: skill.n for name, skill in found.skills.items()} == {"coin": 2, "letters": 2}


def test_an_engine_that_crashes_is_one_line(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real SIGSEGV, in the place of a native library that is broken.
    (tmp_path / "onnxruntime_genai.py").write_text("import ctypes\nctypes.string_at(0)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match="onnx-int4: the engine died of SIGSEGV while loading") as caught:
        verify(tiny_bundle, threads=1)
    assert "\n" not in str(caught.value)


def test_what_the_worker_finds_wrong_is_raised_here(tiny_bundle: Path, tmp_path: Path) -> None:
    row = {"id": "1", "skill": "coin", "gold": "x", "answer_kind": "text", "tags": []}
    row["messages"] = [{"role": "user", "content": "x" * 1000}]
    folder = remade(tiny_bundle, tmp_path / "b", [row], SKILLS)
    with pytest.raises(UserError, match="shorten the question"):
        verify(folder, threads=1, repetitions=1)


def test_bad_requests_are_user_errors(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limit is 0"):
        verify(tiny_bundle, limit=0)
    with pytest.raises(BundleError, match="no variant 'nope'"):
        verify(tiny_bundle, variant="nope")
    with pytest.raises(BundleError, match="empty suite"):
        verify(remade(tiny_bundle, tmp_path / "b", [], SKILLS))
