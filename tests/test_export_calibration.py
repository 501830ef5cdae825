"""Calibration files of every form become the ids that the student would see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from export_students import make_student
from imatrix_cases import BOS, make_case

from pocketstill_export.calibration import read_calibration
from pocketstill_export.checkpoint import Checkpoint, read_checkpoint
from pocketstill_export.errors import ExportError

ASK = [{"role": "user", "content": "The coin is heads up. 12 flips."}]
ROWS = [
    {"messages": ASK, "rationale": "The coin has 10 flips.", "answer": "tails"},
    {"messages": ASK[:1], "rationale": "", "answer": "heads"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(make_student(tmp_path_factory.mktemp("calibration") / "student"))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def encoded(checkpoint: Checkpoint, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(checkpoint.folder)(text, add_special_tokens=False)["input_ids"])


def test_rows_of_our_own_training_data_are_what_the_student_learnt(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from pocketstill_pipeline.packing import encode

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    expected = [ids for ids, _ in encode(tokenizer, "chat", ROWS)]
    assert read_calibration(parquet(tmp_path / "train.parquet", ROWS), checkpoint) == expected
    assert read_calibration(jsonl(tmp_path / "train.jsonl", ROWS), checkpoint) == expected


def test_conversations_are_rendered_by_the_template(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    talk = [*ASK, {"role": "assistant", "content": "heads"}]
    rows = [{"messages": talk}, {"messages": ASK}, {"messages": ASK, "completion": "tails 🙂"}]
    whole = tokenizer.apply_chat_template(talk, tokenize=True)["input_ids"]
    asked = tokenizer.apply_chat_template(ASK, tokenize=True, add_generation_prompt=True)["input_ids"]
    said = [*encoded(checkpoint, "tails 🙂"), tokenizer.eos_token_id]
    assert read_calibration(jsonl(tmp_path / "a.jsonl", rows), checkpoint) == [whole, asked, asked + said]


def test_special_tokens_in_a_text_are_parsed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [{"text": "<|user|>The coin<|end|>"}, {"text": ""}, {"text": "heads", "messages": None}]
    found = read_calibration(jsonl(tmp_path / "a.jsonl", rows), checkpoint)
    assert found[0][0] == 1 and found[0][-1] == 0
    assert found == [encoded(checkpoint, "<|user|>The coin<|end|>"), encoded(checkpoint, "heads")]


def test_a_plain_text_is_cut_into_whole_pieces(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = "The coin is heads up.\n漢字 🙂 12345\n" * 9
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    ids = encoded(checkpoint, text)
    pieces = [ids[start : start + 32] for start in range(0, len(ids) - 31, 32)]
    assert len(ids) % 32
    assert read_calibration(tmp_path / "a.txt", checkpoint, context_length=32) == pieces
    # The model's own context, 128, is less than the 512 asked for.
    assert {len(piece) for piece in read_calibration(tmp_path / "a.txt", checkpoint)} == {128}
    (tmp_path / "short.txt").write_text("The coin", encoding="utf-8")
    assert read_calibration(tmp_path / "short.txt", checkpoint) == [encoded(checkpoint, "The coin")]


def test_every_piece_starts_with_bos_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_case("llama-bos", tmp_path / "student"))
    (tmp_path / "a.txt").write_text("The coin is heads up. " * 30, encoding="utf-8")
    pieces = read_calibration(tmp_path / "a.txt", checkpoint, context_length=16)
    whole = [BOS, *encoded(checkpoint, "The coin is heads up. " * 30)]
    assert len(pieces) == len(whole) // 16
    assert all(piece == [BOS, *whole[16 * n + 1 : 16 * n + 16]] for n, piece in enumerate(pieces))


def test_limits_left_in_the_tokenizer_do_not_cut(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    student = read_checkpoint(make_student(tmp_path / "student"))
    tokenizer = Tokenizer.from_file(str(student.folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(student.folder / "tokenizer.json"))
    path = jsonl(tmp_path / "a.jsonl", [{"text": "The coin is heads up."}, {"text": "A"}])
    assert read_calibration(path, student) == read_calibration(path, checkpoint)


def test_a_long_row_is_cut_and_none_of_it_lost(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "The coin is heads up. " * 30}])
    pieces = read_calibration(path, checkpoint, context_length=50)
    assert [len(piece) for piece in pieces[:-1]] == [50] * (len(pieces) - 1)
    assert [token for piece in pieces for token in piece] == encoded(checkpoint, "The coin is heads up. " * 30)


def test_too_many_rows_are_drawn_the_same_each_time(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"The coin {n}"} for n in range(500)])
    everything = read_calibration(path, checkpoint)
    some = read_calibration(path, checkpoint, max_tokens=300)
    assert some == read_calibration(path, checkpoint, max_tokens=300)
    assert 300 <= sum(map(len, some)) < 310
    places = [everything.index(ids) for ids in some]
    # In the file's order, and not only its beginning.
    assert places == sorted(places) and places[-1] > 400


def test_too_long_a_text_is_thinned_evenly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{n:04d}" for n in range(1000)), encoding="utf-8")
    everything = read_calibration(tmp_path / "a.txt", checkpoint, context_length=40)
    some = read_calibration(tmp_path / "a.txt", checkpoint, context_length=40, max_tokens=1000)
    assert [everything.index(piece) for piece in some] == list(range(0, 100, 4))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl, line 3: this is no JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl, line 2: this is no object"),
        ("a.jsonl", b'{"question": "a"}\n', "a.jsonl, line 1: there is neither text nor messages"),
        ("a.jsonl", b'{"messages": "a"}\n', "a.jsonl, line 1: messages is no list"),
        ("a.jsonl", b'{"messages": []}\n', "a.jsonl, line 1: messages is no list"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "a.jsonl, line 1: messages is no list"),
        ("a.jsonl", b"", "a.jsonl holds no text"),
        ("a.txt", b"", "a.txt holds no text"),
        ("a.txt", b"ab\xff", r"a.txt is not UTF-8 text \(byte 2\)"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl is not UTF-8 text"),
        ("a.parquet", b"PAR1 no more", "a.parquet is no parquet file"),
        ("a.txt", None, "a.txt cannot be read: No such file"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(
    name: str, content: bytes | None, reason: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=reason) as caught:
        read_calibration(tmp_path / name, checkpoint)
    assert "\n" not in str(caught.value)


def test_a_row_of_a_parquet_file_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"messages": ASK}, {"messages": None}])
    with pytest.raises(ExportError, match=r"a\.parquet, row 2: there is neither"):
        read_calibration(path, checkpoint)


def test_messages_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    folder = make_student(tmp_path / "student")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    path = jsonl(tmp_path / "a.jsonl", [{"messages": ASK}])
    with pytest.raises(ExportError, match=r"a\.jsonl, line 1: .*roles must alternate"):
        read_calibration(path, read_checkpoint(folder))
