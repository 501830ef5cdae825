"""The choice under a budget: the search for a mixture on a real student, and figures against torch's own."""

from __future__ import annotations

import json
import re
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from export_students import make_student

from pocketstill.bundle import Bundle, SuiteItem, Variant
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.choice.accuracy import Suite
from pocketstill_export.choice.candidates import MIXED, MIXED_FILE, Choice, Tolerance
from pocketstill_export.choice.choose import choose
from pocketstill_export.choice.judge import Judge, decode_rates
from pocketstill_export.choice.sensitivity import TypeSearch, matrices, tensor_groups
from pocketstill_export.errors import ExportError
from pocketstill_export.gguf.quantize import quantize_gguf
from pocketstill_export.gguf.write import write_gguf
from pocketstill_export.parity.logits import load_reference

CONTEXT = 128
TEXTS = [f"<|user|>The coin is heads up, {n} flips.<|end|><|assistant|>So tails, {n} 12345 swap" for n in range(12)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Three layers whose rows k-quants can take. All are all but silent, except for the middle one's perceptron."""
    from safetensors.torch import load_file, save_file

    folder = make_student(
        tmp_path_factory.mktemp("choose") / "student",
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=3,
        initializer_range=0.05,
    )
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= 4 if name == "model.layers.1.mlp.down_proj.weight" else 1e-4
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return read_checkpoint(folder)


@pytest.fixture(scope="module")
def full(student: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "f32.gguf"
    write_gguf(student, path, precision="f32", context_length=CONTEXT, name="student")
    return path


KINDS = ("q8_0", "q6_k", "q4_0", "q3_k_m", "q2_k")


@pytest.fixture
def folder(full: Path, tmp_path: Path) -> Path:
    for kind in KINDS:
        quantize_gguf(full, tmp_path / f"model-{kind}.gguf", kind)
    return tmp_path


def variants(*kinds: str) -> list[Variant]:
    return [Variant(f"gguf-{kind}", "gguf", f"model-{kind}.gguf", (f"model-{kind}.gguf",), 0) for kind in kinds]


def mean_kl(checkpoint: Checkpoint, path: Path, texts: list[str]) -> float:
    """Mean KL by torch's kl_div, transformers' tokenizer and the engine's logits."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from pocketstill.engines import open_engine

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint.folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    engine = open_engine(path.parent, Variant("v", "gguf", path.name, (path.name,), 0), threads=1)
    found = []
    try:
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                wanted = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            own = torch.log_softmax(torch.from_numpy(engine.logits(ids)).double(), -1)
            found.append(torch.nn.functional.kl_div(own, wanted, log_target=True, reduction="none").sum(-1))
    finally:
        engine.close()
    return float(torch.cat(found).mean())


@pytest.fixture(scope="module")
def judge(student: Checkpoint) -> Judge:
    return Judge(student, load_reference(student), TEXTS[1::2], context_length=CONTEXT, max_tokens=4096)


def test_every_matrix_is_in_one_group(full: Path) -> None:
    names = list(matrices(full))
    for parts in (1, 2, 3):
        groups = tensor_groups(names, parts=parts)
        homes = {name: [group.name for group in groups if re.search(group.pattern, name)] for name in names}
        assert all(len(found) == 1 for found in homes.values()), homes
        assert len(groups) == 1 + 7 * parts
    assert {group.name for group in tensor_groups(names, parts=3)} >= {"token_embd", "attn_q, layers 2-2"}


def test_the_matrices_that_matter_are_raised_first(full: Path, judge: Judge, tmp_path: Path) -> None:
    search = TypeSearch(full, tmp_path, judge.check, ladder=("q8_0",), parts=3)
    steps = search.raises()
    base, raised = next(steps), next(steps)
    assert set(base.types.values()) == {"q3_k"}
    matter = {"token_embd", *(f"ffn_{part}, layers 1-1" for part in ("gate", "up", "down"))}
    assert {name for name, type_ in raised.types.items() if type_ == "q8_0"} < matter
    most = max(gain.kl_saved for gain in search.gains)
    assert {gain.group for gain in search.gains if gain.kl_saved > 0.05 * most} == matter


def test_each_raise_is_the_best_there_was(full: Path, judge: Judge, tmp_path: Path) -> None:
    """Where savings only shrink, the lazy order is the greedy one: every other raise is measured here to see."""
    search = TypeSearch(full, tmp_path, judge.check, ladder=("q8_0",))
    path = [mixture for mixture, _ in zip(search.raises(), range(3), strict=False)]
    assert [it.bytes for it in path] == sorted({it.bytes for it in path})
    for now, then in pairwise(path):
        taken = (now.check.kl_mean - then.check.kl_mean) / (then.bytes - now.bytes)
        for group, type_ in now.types.items():
            if type_ == "q3_k":
                other = search.measured(now.types | {group: "q8_0"})
                rate = (now.check.kl_mean - other.check.kl_mean) / (other.bytes - now.bytes)
                assert rate <= taken * 1.25 + 1e-12, group


def test_files_have_the_types_that_were_asked(full: Path, judge: Judge, tmp_path: Path) -> None:
    import gguf

    search = TypeSearch(full, tmp_path, judge.check, parts=2)
    types = {
        group.name: type_
        for group, (type_, _) in zip(
            search.groups, product(("q4_k", "q8_0", "q6_k", "q3_k", "q5_k"), range(9)), strict=False
        )
    }
    search.write(types, tmp_path / "mixed.gguf")
    stored = {it.name: it.tensor_type.name.lower() for it in gguf.GGUFReader(str(tmp_path / "mixed.gguf")).tensors}
    for group in search.groups:
        assert {stored[name] for name in matrices(full) if re.search(group.pattern, name)} == {types[group.name]}


def test_trimming_takes_back_what_is_not_needed(full: Path, judge: Judge, tmp_path: Path) -> None:
    search = TypeSearch(full, tmp_path, judge.check, ladder=("q8_0",), parts=3)
    top = search.measured({group.name: "q8_0" for group in search.groups})
    matters = "ffn_down, layers 1-1"
    trimmed = search.trimmed(top, lambda it: it.types[matters] == "q8_0")
    assert {name for name, type_ in trimmed.types.items() if type_ != "q3_k"} == {matters}


def test_a_search_ends_when_its_time_is_up(full: Path, judge: Judge, tmp_path: Path) -> None:
    search = TypeSearch(full, tmp_path, judge.check, seconds=0.0)
    assert len(list(search.raises())) == 1
    assert search.over and search.trials == 1


def test_a_base_that_is_no_type_is_refused(full: Path, judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="choose a base from q2_k"):
        TypeSearch(full, tmp_path, judge.check, base="q9")


@pytest.fixture(scope="module")
def made(student: Checkpoint, full: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Choice]:
    """A choice among the uniform types and a mixture, with a tolerance that q4_0 keeps and the lower ones do not."""
    folder = tmp_path_factory.mktemp("made")
    for kind in KINDS:
        quantize_gguf(full, folder / f"model-{kind}.gguf", kind)
    limit = 1.2 * mean_kl(student, folder / "model-q4_0.gguf", TEXTS[::2])
    choice = choose(
        student, folder, variants(*KINDS), TEXTS, tolerance=Tolerance(kl_mean=limit), objective="smallest",
        context_length=CONTEXT, repetitions=3,
    )  # fmt: skip
    return folder, choice


def test_the_mixture_is_smaller_than_any_uniform_type_within(made: tuple[Path, Choice]) -> None:
    _, choice = made
    found = {it.name: it for it in choice.candidates}
    assert choice.chosen == MIXED, choice.said
    assert found["gguf-q4_0"].within and not found["gguf-q3_k_m"].within
    assert found[MIXED].bytes < min(it.bytes for it in choice.candidates if it.within and it.name != MIXED)
    assert found[MIXED].on_size_front
    assert choice.required().name == MIXED


def test_figures_are_those_of_texts_that_the_search_has_not_seen(
    made: tuple[Path, Choice], student: Checkpoint
) -> None:
    folder, choice = made
    found = {it.name: it for it in choice.candidates}
    for name, file in ((MIXED, MIXED_FILE), ("gguf-q4_0", "model-q4_0.gguf")):
        assert found[name].kl_mean == pytest.approx(mean_kl(student, folder / file, TEXTS[::2]), rel=1e-6)
        assert found[name].bytes == (folder / file).stat().st_size


def test_the_mixture_can_be_made_again_from_its_types(made: tuple[Path, Choice], full: Path, tmp_path: Path) -> None:
    folder, choice = made
    types = choice.required().tensor_types
    quantize_gguf(full, tmp_path / "again.gguf", "q3_k_s", tensor_types=types)
    assert (tmp_path / "again.gguf").read_bytes() == (folder / MIXED_FILE).read_bytes()


def test_nothing_but_the_mixture_is_left_in_the_folder(made: tuple[Path, Choice]) -> None:
    folder, choice = made
    assert {path.name for path in folder.iterdir()} == {MIXED_FILE, *(f"model-{kind}.gguf" for kind in KINDS)}
    assert choice.mixed == Variant(MIXED, "gguf", MIXED_FILE, (MIXED_FILE,), (folder / MIXED_FILE).stat().st_size)


def test_a_choice_is_plain_json(made: tuple[Path, Choice]) -> None:
    found = json.loads(json.dumps(made[1].to_dict(), allow_nan=False))
    assert found["chosen"] == MIXED
    assert {it["name"] for it in found["candidates"]} == {MIXED, *(f"gguf-{kind}" for kind in KINDS)}


def test_a_mixture_that_saves_nothing_is_not_kept(student: Checkpoint, folder: Path) -> None:
    choice = choose(
        student, folder, variants("q2_k", "q8_0"), TEXTS, tolerance=Tolerance(kl_mean=1e3), objective="smallest",
        context_length=CONTEXT, repetitions=1,
    )  # fmt: skip
    assert choice.chosen == "gguf-q2_k"
    assert choice.mixed is None and not (folder / MIXED_FILE).exists()
    assert choice.searched is not None and not choice.searched.kept
    assert choice.notes[0].startswith("no mixture of types is both within the tolerance and on the front")


def test_nothing_fits_and_says_so(student: Checkpoint, folder: Path) -> None:
    choice = choose(
        student, folder, variants("q8_0", "q4_0"), TEXTS, tolerance=Tolerance(kl_mean=1e-12), objective="fastest",
        context_length=CONTEXT, mixed=False, repetitions=1,
    )  # fmt: skip
    assert choice.chosen is None
    with pytest.raises(ExportError, match=r"the nearest is gguf-q8_0 .* would let through"):
        choice.required()


def test_speeds_are_medians_between_their_quartiles(student: Checkpoint, folder: Path, judge: Judge) -> None:
    rates = decode_rates(folder, variants("q8_0", "q4_0"), judge.prompts, 5, 1, CONTEXT)
    assert set(rates) == {"gguf-q8_0", "gguf-q4_0"}
    assert all(0 < it.low <= it.median <= it.high for it in rates.values())


def suite(checkpoint: Checkpoint, n: int) -> list[SuiteItem]:
    """Questions of several lengths whose gold is what the checkpoint answers by transformers, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from pocketstill.grading import extract

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint.folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    items = []
    for number in range(n):
        ask = {"role": "user", "content": "The coin flips " * (number % 5) + f"{number} heads?"}
        prompt = tokenizer.apply_chat_template(
            [ask], chat_template=checkpoint.template, tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        gold = extract(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True), "text")
        if gold:
            items.append(SuiteItem(f"q{number}", f"skill{number % 2}", (ask,), gold, "text"))
    return items


def test_answers_of_the_checkpoint_in_batches_are_those_one_at_a_time(student: Checkpoint, full: Path) -> None:
    items = suite(student, 20)
    assert len(items) > 10
    reference = load_reference(student)
    graded = Suite(student, reference, items, max_new_tokens=8, context_length=CONTEXT)
    judge = Judge(student, reference, TEXTS, context_length=CONTEXT, max_tokens=512)
    engine = judge.open(full.parent, Variant("f32", "gguf", full.name, (full.name,), 0))
    try:
        loss, skills = graded.losses(engine)
    finally:
        engine.close()
    assert loss.checkpoint == 1.0
    assert (loss.n, set(skills)) == (len(items), {"skill0", "skill1"})
    assert loss.accuracy >= 0.9 and loss.low <= loss.lost <= loss.high


def test_lost_answers_count_against_a_variant(student: Checkpoint, folder: Path) -> None:
    items = suite(student, 20)
    choice = choose(
        student, folder, variants("q2_k", "q8_0"), TEXTS, tolerance=Tolerance(accuracy_points=30.0),
        objective="smallest", context_length=CONTEXT, suite=items, mixed=False, repetitions=1, max_new_tokens=8,
    )  # fmt: skip
    worse, better = choice.candidates
    assert worse.accuracy is not None and better.accuracy is not None
    assert worse.accuracy.lost > better.accuracy.lost
    for it in choice.candidates:
        assert it.accuracy is not None
        assert it.within == (100 * it.accuracy.high <= 30.0)
    assert not worse.within


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": []}, "no variant to choose from"),
        ({"texts": []}, "no held-out text"),
        ({"tolerance": Tolerance(accuracy_points=1.0)}, "give a suite"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"texts": [""]}, "have no token"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(
    change: dict[str, Any], message: str, student: Checkpoint, tmp_path: Path
) -> None:
    given = {"variants": [Variant("v", "gguf", "v.gguf", (), 0)], "texts": TEXTS, "tolerance": Tolerance(kl_mean=1.0)}
    given |= {"objective": "smallest", "context_length": CONTEXT} | change
    with pytest.raises(ExportError, match=message) as caught:
        choose(student, tmp_path, **given)
    assert "\n" not in str(caught.value)


def test_gguf_and_onnx_are_compared_together(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    bundle = Bundle.load(copy)
    choice = choose(
        read_checkpoint(tiny_checkpoint), copy, bundle.variants, TEXTS, tolerance=Tolerance(kl_mean=1e-3),
        objective="smallest", context_length=bundle.context_length, mixed=False, repetitions=2,
    )  # fmt: skip
    found = {it.name: it for it in choice.candidates}
    assert {it.engine for it in choice.candidates} == {"onnx", "gguf"}
    assert found["onnx-fp32"].within and found["gguf-f16"].within
    assert choice.chosen == min((it for it in choice.candidates if it.within), key=lambda it: it.bytes).name
    Bundle.load(copy)
