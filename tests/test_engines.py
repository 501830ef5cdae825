from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ALL_VARIANTS, CONTEXT, PARITY_TEXTS

from pocketstill.bundle import Bundle
from pocketstill.engines import Engine, open_engine
from pocketstill.engines.gguf import crashes_on_amx
from pocketstill.errors import EngineError, UserError
from pocketstill.files import read_json, write_json
from pocketstill.model import Model, load

QUESTION = "A coin is heads up. Thelma flips the coin. Is the coin still heads up? 漢字"


@pytest.fixture(params=ALL_VARIANTS)
def model(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Model]:
    with load(tiny_bundle, request.param) as model:
        yield model


@pytest.fixture(params=["onnx-fp32", "gguf-f16"])
def unquantized(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Model]:
    with load(tiny_bundle, request.param) as model:
        yield model


def greedy(engine: Engine, ids: list[int], n: int, stop_ids: tuple[int, ...] = ()) -> list[int]:
    return list(engine.generate(ids, max_new_tokens=n, stop_ids=stop_ids))


def test_generates_what_transformers_does(unquantized: Model, tiny_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    ids = unquantized.prompt_ids(QUESTION)
    with torch.no_grad():
        theirs = reference.generate(torch.tensor([ids]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
        logits = reference(torch.tensor([ids])).logits[0].numpy()
    assert greedy(unquantized.engine, ids, 16) == theirs[0].tolist()[len(ids) :]
    assert np.abs(unquantized.engine.logits(ids) - logits).max() < 0.1


def test_logits_have_a_row_per_token_and_agree_with_greedy_decoding(model: Model) -> None:
    ids = model.prompt_ids(QUESTION)
    new = greedy(model.engine, ids, 6)
    logits = model.engine.logits([*ids, *new])
    assert logits.dtype == np.float32
    assert logits.shape == (len(ids) + 6, model._tokenizer.get_vocab_size())
    assert logits[len(ids) - 1 : -1].argmax(axis=1).tolist() == new


def test_a_prompt_that_ends_with_the_padding_token_is_read_to_its_end(model: Model) -> None:
    end = model.bundle.stop_ids[0]
    ids = [*model.prompt_ids(QUESTION), end]
    assert greedy(model.engine, ids, 1) == [int(model.engine.logits(ids)[-1].argmax())]


def test_a_prompt_of_many_batches_has_the_same_logits(unquantized: Model) -> None:
    ids = (unquantized.prompt_ids(QUESTION) * 20)[: CONTEXT - 1]
    head = unquantized.engine.logits(ids[:10])
    assert np.abs(unquantized.engine.logits(ids)[:10] - head).max() < 0.05


def test_the_engine_tokenizes_as_the_bundle_does(model: Model) -> None:
    for text in PARITY_TEXTS:
        assert model.engine.native_encode(text) == model.encode(text)


def test_any_stop_id_ends_the_answer_and_is_not_part_of_it(model: Model) -> None:
    ids = model.prompt_ids(QUESTION)
    free = greedy(model.engine, ids, 8)
    first = free.index(free[3])
    assert greedy(model.engine, ids, 8, (10**6, free[3])) == free[:first]


def test_it_stops_at_the_limit_and_at_the_end_of_the_context(model: Model) -> None:
    ids = model.prompt_ids(QUESTION)
    assert len(greedy(model.engine, ids, 5)) == 5
    assert greedy(model.engine, ids, 0) == []
    whole = greedy(model.engine, ids, 10**6)
    # onnxruntime-genai ends by itself after an end token of the model's.
    ended = model.variant.engine == "onnx" and whole[-1] in model.bundle.stop_ids
    assert len(whole) == CONTEXT - len(ids) or ended


def test_a_prompt_that_fills_the_context_is_a_user_error(model: Model) -> None:
    with pytest.raises(UserError, match=f"context is {CONTEXT}: shorten"):
        model.answer("x" * CONTEXT)
    with pytest.raises(UserError, match="empty"):
        model.engine.generate([], max_new_tokens=1, stop_ids=())


def test_the_seed_decides_what_is_sampled(model: Model) -> None:
    ids = model.prompt_ids(QUESTION)

    def sample(seed: int) -> list[int]:
        return list(model.engine.generate(ids, max_new_tokens=24, stop_ids=(), temperature=1.5, top_p=0.99, seed=seed))

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(4)}) > 1


def test_a_tiny_top_p_is_greedy(model: Model) -> None:
    ids = model.prompt_ids(QUESTION)
    sampled = model.engine.generate(ids, max_new_tokens=12, stop_ids=(), temperature=2.0, top_p=1e-6, seed=5)
    assert list(sampled) == greedy(model.engine, ids, 12)


def test_a_new_generation_does_not_mix_with_one_that_was_left(model: Model) -> None:
    ids = model.prompt_ids(QUESTION)
    alone = greedy(model.engine, ids, 8)
    left = model.engine.generate(ids[:-2], max_new_tokens=8, stop_ids=())
    next(left)
    running = model.engine.generate(ids, max_new_tokens=8, stop_ids=())
    mixed = [next(running)]
    list(left)
    assert mixed + list(running) == alone


def test_a_closed_engine_says_so(model: Model) -> None:
    ids = model.prompt_ids(QUESTION)
    unstarted = model.engine.generate(ids, max_new_tokens=4, stop_ids=())
    running = model.engine.generate(ids, max_new_tokens=4, stop_ids=())
    next(running)
    model.close()
    with pytest.raises(EngineError, match="was closed"):
        greedy(model.engine, ids, 4)
    with pytest.raises(EngineError, match="was closed"):
        model.engine.logits(ids)
    for left in (unstarted, running):
        try:
            assert len(list(left)) < 4
        except EngineError as error:
            assert "was closed" in str(error)
    model.close()


def test_streamed_pieces_join_to_the_answer(model: Model) -> None:
    pieces = list(model.stream(QUESTION, max_new_tokens=64))
    assert "".join(pieces) == model.answer(QUESTION, max_new_tokens=64).text
    assert len(pieces) > 1


@pytest.mark.parametrize("text", ["naïve 漢字 🙂👩‍👩‍👧 ok", "  two  spaces\n\n", "🙂", ""])
def test_a_piece_never_ends_inside_of_a_character(tiny_bundle: Path, text: str) -> None:
    with load(tiny_bundle, "onnx-fp32") as model:
        pieces = list(model.detokenize(iter(model.encode(text))))
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_a_character_that_was_cut_off_is_not_lost_silently(tiny_bundle: Path) -> None:
    with load(tiny_bundle, "onnx-fp32") as model:
        ids = model.encode("ab🙂")[:-1]
        assert "".join(model.detokenize(iter(ids))) == model.decode(ids) != "ab"


def test_the_three_line_use(tiny_bundle: Path) -> None:
    code = (
        "import sys, pocketstill\n"
        f"model = pocketstill.load({str(tiny_bundle)!r})\n"
        "answer = model.answer('A coin is heads up.')\n"
        "assert isinstance(answer.answer, str) and answer.completion_tokens > 0 and answer.seconds > 0\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_damaged_model_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    bundle = Bundle.load(folder)
    for name in ("onnx-fp32", "gguf-f16"):
        variant = bundle.variant(name)
        (folder / variant.file).write_bytes(b"no model")
        with pytest.raises(EngineError, match=r"cannot load .*export it again") as caught:
            open_engine(folder, variant)
        assert "\n" not in str(caught.value)


def test_a_missing_llama_cpp_names_the_extra(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "import pocketstill\n"
        f"try: pocketstill.load({str(tiny_bundle)!r}, 'gguf-f16')\n"
        "except pocketstill.UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "GGUF variants need llama-cpp-python: pip install 'pocketstill[gguf]'\n"


def test_without_llama_cpp_another_variant_of_the_bundle_is_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    index = read_json(folder / "pocketstill.json")
    write_json(folder / "pocketstill.json", index | {"default_variant": "gguf-f16"})
    code = (
        "import sys\nif len(sys.argv) > 2: sys.modules['llama_cpp'] = None\n"
        "import pocketstill\nprint(pocketstill.load(sys.argv[1]).variant.engine)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder), *more], check=True, capture_output=True, text=True
        ).stdout
        for more in ([], ["without"])
    ]
    assert said == ["gguf\n", "onnx\n"]


def test_llama_cpp_is_silent(tiny_bundle: Path) -> None:
    code = f"import pocketstill; pocketstill.load({str(tiny_bundle)!r}, 'gguf-q8_0').answer('hi')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout + done.stderr == ""


def test_amx_is_known_from_what_the_build_says() -> None:
    assert crashes_on_amx("CPU : SSE3 = 1 | AMX_INT8 = 1 | REPACK = 1 | ")
    assert not crashes_on_amx("CPU : SSE3 = 1 | AVX512 = 1 | REPACK = 1 | ")
