"""A user's own documents: texts without their markup, from folders, pages and tables."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the workshop extra")

import pyarrow
import pyarrow.parquet
from teaching import write_rows

from pocketstill.errors import UserError
from pocketstill_pipeline.reading import Document, read_documents

PAGE = """<!doctype html><html><head><title>Pumps</title><style>p { color: red }</style></head>
<body><nav>Home</nav><h1>Pumps &amp; valves</h1><script>alert("<p>no</p>")</script>
<p>A pump   moves
water.</p><ul><li>One</li><li>Two</li></ul><pre>a  b
c</pre><p>Last"""


def test_a_folder_of_documents_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\r\n")
    (tmp_path / "b.md").write_text("# Three\n")
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress(b"Four."))
    (tmp_path / "old.txt").write_bytes("Größe".encode("cp1252"))
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "photo.png").write_bytes(b"\0")
    (tmp_path / ".hidden.txt").write_text("no")
    write_rows(tmp_path / "d.jsonl", [{"text": "Five."}, {"text": ""}, {"title": "six", "text": "Six."}])
    pyarrow.parquet.write_table(pyarrow.table({"content": ["Seven."]}), tmp_path / "e.parquet")
    assert read_documents(str(tmp_path)) == [
        Document("a.txt", "One.\nTwo."),
        Document("b.md", "# Three"),
        Document("d.jsonl, row 1", "Five."),
        Document("d.jsonl, six", "Six."),
        Document("e.parquet, row 1", "Seven."),
        Document("old.txt", "Größe"),
        Document("sub/c.txt.gz", "Four."),
    ]


def test_a_first_row_without_text_is_blank_and_no_other_table(tmp_path: Path) -> None:
    table = pyarrow.table({"title": ["a", "b"], "text": [None, "Two."]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_documents(str(tmp_path / "a.parquet")) == [Document("a.parquet, b", "Two.")]


def test_a_page_is_its_words(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (document,) = read_documents(str(tmp_path / "a.html"))
    assert document.name == "a.html"
    assert document.text == "Pumps & valves\n\nA pump moves water.\n\nOne\n\nTwo\n\na b\nc\n\nLast".replace(
        "a b", "a  b"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", b"%PDF", ".pdf is not a kind of document; known: .txt"),
        ("a.txt", b"a\0b", "is no text"),
        ("a.txt", b"  ", "holds no text"),
        ("a.csv", b"name,price\nx,1\n", "line 2: no column of texts (name, price); call it 'text'"),
        ("a.txt.gz", b"no", "is broken or cut off"),
    ],
)
def test_what_holds_no_text_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_documents(str(tmp_path / name))
    assert said in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_missing_documents_are_one_line(tmp_path: Path) -> None:
    for name in ("none.txt", "none"):
        with pytest.raises(UserError, match=r"none.*: cannot be read \(No such file"):
            read_documents(str(tmp_path / name))
    with pytest.raises(UserError, match="holds no text"):
        read_documents(str(tmp_path))
