"""A user's own documents: plain text, Markdown, HTML without its markup, and rows of tables with a text column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from pocketstill.errors import UserError

from .files import COMPRESSED, kind_of, opened
from .hub import PREFIX, is_saved
from .sources import files_in, records

_TEXTS = (".txt", ".text", ".md", ".markdown", ".rst")
_PAGES = (".html", ".htm", ".xhtml")
_COLUMNS = ("text", "content", "document", "body", "passage", "page_content", "markdown", "article")
_NAMES = ("title", "name", "url", "id")
_SILENT = frozenset({"script", "style", "noscript", "template", "svg", "head", "nav", "iframe", "canvas"})
_BLOCKS = frozenset(
    "address article aside blockquote br dd div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr li "
    "main ol p pre section table td th tr ul".split()
)


@dataclass(frozen=True)
class Document:
    """One text. `name` tells people which: its path inside the folder, or file and row."""

    name: str
    text: str


def read_documents(source: str) -> list[Document]:
    """The documents of a file, of a folder and the folders in it, or of a data set (`hf:owner/name`); no blank ones.

    .txt, .md, .rst and .html are one document each; .jsonl, .json, .csv and .parquet have one a row, in the first
    column of `text`, `content`, `document`, `body`, `passage`, `page_content`, `markdown`, `article`. All may be .gz.

    Raises:
        UserError: the source cannot be read, or holds no text.
    """
    found = list(_documents(source))
    if not found:
        raise UserError(f"{source}: holds no text; give .txt, .md, .html files, or a table with a column 'text'")
    return found


def _documents(source: str) -> Iterator[Document]:
    path = Path(source)
    if source.startswith(PREFIX) or (path.is_dir() and is_saved(path)):
        yield from _rows(source, "")
        return
    folder = path.is_dir()
    files = files_in(path, _is_known) if folder else [path]
    if not folder and path.exists() and not _is_known(path):
        known = " ".join((*_TEXTS, *_PAGES))
        raise UserError(f"{source}: {path.suffix or 'no ending'} is not a kind of document; known: {known}, tables too")
    for file in files:
        name = file.relative_to(path).as_posix() if folder else file.name
        if kind_of(file) is not None:
            yield from _rows(str(file), name)
        elif text := _text(file, str(file)).strip():
            yield Document(name, text)


def _ending(path: Path) -> str:
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _is_known(path: Path) -> bool:
    return kind_of(path) is not None or _ending(path) in (*_TEXTS, *_PAGES)


def _text(path: Path, shown: str) -> str:
    with opened(path, shown) as file:
        raw = file.read()
    if b"\x00" in raw:
        raise UserError(f"{shown}: is no text; remove it, or save it as UTF-8 text")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        # What older editors write; a document needs no byte to be exact.
        text = raw.decode("cp1252", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return page_text(text) if _ending(path) in _PAGES else text


def _rows(source: str, name: str) -> Iterator[Document]:
    column: str | None = None
    for number, record in enumerate(records(source), start=1):
        row = record.row
        if row is None:
            continue
        if column is None:
            column = next((key for key in _COLUMNS if isinstance(row.get(key), str)), None)
            if column is None and any(key in row and row[key] is None for key in _COLUMNS):
                continue
            if column is None:
                names = ", ".join(list(row)[:12])
                raise UserError(f"{record.where}: no column of texts ({names}); call it 'text'")
        text = row.get(column)
        if isinstance(text, str) and text.strip():
            called = next((str(row[key]) for key in _NAMES if row.get(key) not in (None, "")), f"row {number}")
            yield Document(f"{name or source}, {called}", text.strip())


class _Page(HTMLParser):
    """The words of a page: a line a block, nothing of scripts, styles and navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent: list[str] = []
        self._kept = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent.append(tag)
        elif tag == "body":
            # A head that is never closed ends here.
            self._silent.clear()
        if tag in _BLOCKS:
            self.parts.append("\n\n" if re.fullmatch("h[1-6]|p", tag) else "\n")
        self._kept += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            while self._silent and self._silent.pop() != tag:
                pass
        if tag in _BLOCKS:
            self.parts.append("\n")
        self._kept -= tag == "pre" and self._kept > 0

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data if self._kept else re.sub(r"\s+", " ", data))


def page_text(html: str) -> str:
    """The text of an HTML page, a line a block, at most one blank line between."""
    page = _Page()
    page.feed(html)
    page.close()
    lines = (line.strip(" ") for line in "".join(page.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
