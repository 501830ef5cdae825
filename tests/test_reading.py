"""A user's files, good ones and broken ones: every row comes out or is listed with file, line and reason."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the workshop extra")

import pyarrow
import pyarrow.parquet
from teaching import write_rows

from pocketstill.errors import UserError
from pocketstill.grading import equal, extract
from pocketstill_pipeline.reading import BadRow, DataRow, describe, iter_data, read_data

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ROWS = [{"question": f"What is {i} and {i}?", "gold": str(2 * i)} for i in range(5)]
GOOD = json.dumps(ROWS[0]).encode()


def asked(row: DataRow) -> str:
    return str(row.messages[-1]["content"])


def write_csv(path: Path, rows: list[dict[str, Any]], **how: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **how)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_table(path: Path, rows: list[dict[str, Any]], **how: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **how)
    return path


def complaint(source: Path | str, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_data(str(source), **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bad_of(path: Path, **how: Any) -> list[tuple[str, str]]:
    return [(row.where.removeprefix(f"{path}, "), row.why) for row in read_data(str(path), **how).bad]


def test_all_kinds_of_files_give_the_same_rows(tmp_path: Path) -> None:
    files = [
        write_rows(tmp_path / "a.jsonl", ROWS),
        write_csv(tmp_path / "a.csv", ROWS),
        write_csv(tmp_path / "a.tsv", ROWS, delimiter="\t"),
        write_csv(tmp_path / "semicolons.csv", ROWS, delimiter=";"),
        write_table(tmp_path / "a.parquet", ROWS),
    ]
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "under.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    files += [tmp_path / "a.json", tmp_path / "under.json", tmp_path / "lines.json"]
    for path in list(files):
        packed = tmp_path / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        files.append(packed)
    zst = tmp_path / "a.jsonl.zst"
    with pyarrow.output_stream(str(zst), compression="zstd") as stream:
        stream.write((tmp_path / "a.jsonl").read_bytes())
    for path in [*files, zst]:
        data = read_data(str(path))
        assert [(asked(row), row.gold) for row in data.rows] == [(r["question"], r["gold"]) for r in ROWS], path
        assert data.form == "question" and not data.bad and all(str(path) in row.where for row in data.rows)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"question": "q"', "not JSON (Expecting ',' delimiter, column 17)"),
        (b"[1]", "not a JSON object"),
        (b'{"question": "\xff", "gold": "1"}', "not UTF-8 (byte 14)"),
        (b'{"question": "q"}', "the field 'gold' is missing"),
        (b'{"question": "q", "gold": null}', "the field 'gold' is missing"),
        (b'{"question": "q", "gold": true}', "the field 'gold' is not a string"),
        (b'{"question": 7, "gold": "1"}', "the field 'question' is not a string"),
        (b'{"question": " ", "gold": "1"}', "the field 'question' is empty"),
        (b'{"question": "q", "gold": "", "split": "train"}', "the field 'gold' is empty"),
        (b'{"question": "q", "gold": "1", "split": "tset"}', "split is 'tset'; it must be 'train' or 'test'"),
        (b'{"question": "\\ud800", "gold": "1"}', "a text holds half a surrogate pair, which is no Unicode"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nests too deeply (more than 64 levels)"),
        (b"[" * 200_000, "nests too deeply"),
        (b'{"question": "q", "gold": ' + b"9" * 5000 + b"}", "not JSON (a number of too many digits)"),
    ],
)
def test_a_broken_line_is_listed_and_the_rest_goes_on(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    data = read_data(str(path))
    assert data.bad == [BadRow(f"{path}, line 3", why)]
    assert [row.where for row in data.rows] == [f"{path}, line 1", f"{path}, line 4"]


def test_marks_line_ends_and_zeros_of_other_systems_do_not_hurt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + b"\0" * 4096 + b"\r\n" + GOOD.replace(b"What", b"W\\u0000hat"))
    assert [asked(row) for row in read_data(str(path)).rows] == ["What is 0 and 0?"] * 2
    table = tmp_path / "a.csv"
    table.write_bytes(b'\xef\xbb\xbfquestion,gold\r\n"one\r\ntwo",1\r\n\r\nthr\0ee,3\r\n')
    data = read_data(str(table))
    assert [(asked(row), row.where) for row in data.rows] == [
        ("one\ntwo", f"{table}, line 2"),
        ("three", f"{table}, line 5"),
    ]
    (tmp_path / "wide.csv").write_bytes("question,gold\nq,1\n".encode("utf-16"))
    assert "is UTF-16 text; save it as UTF-8" in complaint(tmp_path / "wide.csv")


def test_a_field_of_megabytes_is_a_field(tmp_path: Path) -> None:
    rows = [{"question": "x" * (5 << 20), "gold": "1"}]
    for path in (write_csv(tmp_path / "a.csv", rows), write_rows(tmp_path / "a.jsonl", rows)):
        assert len(asked(read_data(str(path)).rows[0])) == 5 << 20


def test_a_broken_csv_record_costs_its_own_line_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = ["question,gold", '"two', 'lines",1', '"never closed,2', "q3,3", '"quoted" badly,4', "a,b,c", "one", "q5,5"]
    path.write_text("\n".join(lines) + "\n")
    data = read_data(str(path))
    assert [(asked(row), row.where) for row in data.rows] == [
        ("two\nlines", f"{path}, line 2"),
        ("q3", f"{path}, line 5"),
        ("q5", f"{path}, line 9"),
    ]
    assert [row.where.rpartition(" ")[2] for row in data.bad] == ["4", "6", "7", "8"]
    assert "3 fields, but the header has 2" in data.bad[2].why and "not CSV" in data.bad[0].why
    path.write_text("question,gold\nq1,1\n" + '"' + "q2,2\n" + "q3,3\n" * 3)
    data = read_data(str(path))
    assert (len(data.rows), [row.why for row in data.bad]) == (4, ["not CSV (a quote that never closes)"])


def test_a_spreadsheet_may_end_in_empty_rows_and_have_delimiters_in_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"question, in full, please";answer\r\nq1;1\r\n' + ";\r\n" * 300 + "q2;2\r\n;;;\r\n")
    data = read_data(str(path), columns={"question": "question, in full, please"})
    assert [(asked(row), row.gold) for row in data.rows] == [("q1", "1"), ("q2", "2")] and not data.bad


def test_csv_of_another_encoding_is_listed_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("question,gold\nWie groß?,1\n".encode("latin-1") + b"q,2\n")
    assert bad_of(path) == [("line 2", "not UTF-8")]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_missing_and_empty_files_are_one_line(tmp_path: Path, ending: str) -> None:
    assert f"none.{ending}: cannot be read (No such file" in complaint(tmp_path / f"none.{ending}")
    path = tmp_path / f"empty.{ending}"
    path.write_bytes(gzip.compress(b"\n") if ending.endswith("gz") else b"")
    assert ("no whole Parquet" if ending == "parquet" else f"empty.{ending}: the file has no rows") in complaint(path)


def test_files_that_are_no_data_are_one_line(tmp_path: Path) -> None:
    whole = write_table(tmp_path / "a.parquet", ROWS * 1000, compression="none").read_bytes()
    for name, content, said in [
        ("cut.parquet", whole[: len(whole) // 2], "is no whole Parquet file"),
        ("cut.jsonl.gz", gzip.compress(GOOD * 9)[:-20], "is broken or cut off"),
        ("no.jsonl.gz", b"question", "is broken or cut off"),
        ("a.xlsx", b"PK", ".xlsx is not a kind of data file; known: .jsonl"),
        ("a", b"", "no ending is not a kind of data file"),
        ("a.json", b'[{"question": "q"', "not JSON (Expecting ',' delimiter, line 1, column 18)"),
        ("twice.csv", b"a,a\n1,2\n", "line 1: the column 'a' is there twice"),
        ("latin.csv", b"Gr\xf6\xdfe,a\n1,2\n", "line 1: the header is not UTF-8; save the file as UTF-8"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert f"{tmp_path / name}" in complaint(tmp_path / name) and said in complaint(tmp_path / name)


def test_a_page_of_parquet_that_is_damaged_ends_in_one_line(tmp_path: Path) -> None:
    rows = [{"question": f"question {i} " * 20, "gold": str(i)} for i in range(3000)]
    path = write_table(tmp_path / "a.parquet", rows, compression="zstd", use_dictionary=False)
    raw = bytearray(path.read_bytes())
    raw[1000:1400] = b"\xff" * 400
    path.write_bytes(raw)
    assert "is no whole Parquet file" in complaint(path)


def test_text_in_parquet_that_is_none_is_listed(tmp_path: Path) -> None:
    texts = pyarrow.array([b"q0", b"\xff\xfe", b"q2"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"question": texts, "gold": ["0", "1", "2"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    data = read_data(str(tmp_path / "a.parquet"))
    assert [asked(row) for row in data.rows] == ["q0", "q2"]
    assert [(row.where[-5:], row.why) for row in data.bad] == [("row 2", "not UTF-8")]


def test_too_many_bad_rows_end_in_one_line_with_the_first_three(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + b"{\n" * 5)
    assert len(read_data(str(path), most_bad=5).bad) == 5
    said = complaint(path, most_bad=4)
    assert "more than 4 rows cannot be used" in said and said.count("not JSON") == 3
    for number in (2, 3, 4):
        assert f"{path}, line {number}: not JSON" in said
    assert said.endswith("mend or remove the lines")
    path.write_bytes(b"{\n" * 2)
    assert "none of its 2 rows can be used" in complaint(path)
    path.write_bytes(b'{"question": ""}\n' * 2)
    assert "none of its 2 rows can be used as form 'question'" in complaint(path)


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"prompt": "q", "answer": "a"}, "a"),
        ({"input": "q", "output": "a"}, "a"),
        ({"query": "q", "target": "a"}, "a"),
        ({"problem": "q", "label": 7}, "7"),
        ({"question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}, "a"),
        ({"problem": "q", "solution": r"so it is \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
        ({"instruction": "q", "gold": {"tool": "light", "arguments": {}}}, '{"tool": "light", "arguments": {}}'),
    ],
)
def test_columns_of_other_names_are_found(tmp_path: Path, row: dict[str, Any], gold: str) -> None:
    data = read_data(str(write_rows(tmp_path / "a.jsonl", [row])))
    assert (data.form, asked(data.rows[0]), data.rows[0].gold) == ("question", "q", gold)


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    rows = [{"Frage": "q", "Antwort": "a", "Teil": "dev", "id": 7, "answer": "no"}]
    columns = {"question": "Frage", "gold": "Antwort", "split": "Teil"}
    row = read_data(str(write_csv(tmp_path / "a.csv", rows)), columns=columns).rows[0]
    assert (asked(row), row.gold, row.split) == ("q", "a", "heldout")
    assert row.extra == {"id": "7", "answer": "no"}
    nested = write_rows(tmp_path / "n.jsonl", [{"doc": {"q": "inner"}, "gold": "1"}])
    assert asked(read_data(str(nested), columns={"question": "doc.q"}).rows[0]) == "inner"


def test_a_mapping_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"Frage": "q", "Antwort": "a"}])
    assert "columns.question names 'Fragen', which no row has; nearest: 'Frage'" in complaint(
        path, columns={"question": "Fragen"}
    )
    assert "columns.qestion: no field is called so; nearest: 'question'" in complaint(
        path, columns={"qestion": "Frage"}
    )
    assert (
        "its columns (Frage, Antwort) fit no form of data; say which is which with columns, such as columns = { quest"
        in complaint(path)
    )
    assert "'alpaka' is no form of data; nearest: 'alpaca'" in complaint(path, form="alpaka")


def test_a_folder_has_splits_by_file_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train-00000-of-00001.jsonl", ROWS)
    write_table(tmp_path / "validation.parquet", ROWS[:2])
    write_csv(tmp_path / "my_test.csv", ROWS[:1])
    write_rows(tmp_path / "train_test.jsonl", ROWS[:1])
    write_rows(tmp_path / "dev.jsonl", [ROWS[0] | {"split": "train"}])
    (tmp_path / "README.md").write_text("# not data")
    (tmp_path / ".cache.jsonl").write_text("{")
    splits = describe(read_data(str(tmp_path)))["splits"]
    assert splits == {"train": 6, "heldout": 3, "none": 1}
    assert {row.split for row in read_data(str(tmp_path / "my_test.csv")).rows} == {None}
    (tmp_path / "data" / "none").mkdir()
    assert "holds no data file" in complaint(tmp_path / "data" / "none")


def test_lists_of_splits_in_one_json_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS[:3], "test": ROWS[3:]}))
    data = read_data(str(tmp_path / "a.json"))
    assert describe(data)["splits"] == {"train": 3, "heldout": 2}
    assert data.rows[-1].where == f"{tmp_path / 'a.json'}, test, item 2"


def test_big_files_are_not_held_in_memory(tmp_path: Path) -> None:
    rows = [{"question": f"{i} " * 500, "gold": str(i)} for i in range(6000)]
    files = [write_rows(tmp_path / "a.jsonl", rows), write_csv(tmp_path / "a.csv", rows)]
    files.append(write_table(tmp_path / "a.parquet", rows))
    for path in files:
        tracemalloc.start()
        count = sum(isinstance(row, DataRow) for row in iter_data(str(path)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 6000 and peak < 4 << 20, path


def test_description_in_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [ROWS[0] | {"split": "train"}, {"question": "q"}, {"question": "abc", "gold": "123"}])
    assert describe(read_data(str(path))) == {
        "form": "question", "rows": 2, "bad": 1, "skipped": {}, "splits": {"train": 1, "none": 1}, "with": {"gold": 2},
        "tools": 0, "turns": 1.0, "mean_characters": {"messages": 9.5, "gold": 2.0},
        "first_bad": [f"{path}, line 2: the field 'gold' is missing"],
    }  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_gsm8k_as_published_has_reasons_and_gold() -> None:
    data = read_data(str(SHARED / "gsm8k"))
    assert describe(data)["splits"] == {"train": 7473, "heldout": 1319} and not data.bad
    row = next(row for row in data.rows if row.where.endswith("train.jsonl, line 1"))
    assert row.gold == "72" and row.rationale is not None and "<<" not in row.rationale and "####" not in row.rationale


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(
    ("name", "kind", "published"),
    [("coin_flip", "yes_no", 91.4), ("aqua", "choice", 33.5), ("multiarith", "number", 78.7)],
)
def test_recorded_traces_keep_the_published_accuracy(name: str, kind: Any, published: float) -> None:
    data = read_data(str(SHARED / "recorded_teacher" / f"{name}.jsonl"))
    right = sum(equal(extract(row.completion or "", kind), row.gold or "", kind) for row in data.rows)
    assert data.form == "recorded" and not data.bad
    assert round(100 * right / len(data.rows), 1) == published
    assert {"reasoning", "answer_prompt", "answer_completion"} <= set(data.rows[0].extra)
