"""The questions of a collection on the disk: a million of them take no more memory than their places in the file."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, overload

from pocketstill.errors import UserError

from .example import Question, Split


class QuestionFile(Sequence[Question]):
    """Questions of a JSONL file, each read when it is asked for; made by `open_questions`.

    `starts` are the places in the file of those that belong to it, in bytes.
    """

    def __init__(self, file: BinaryIO, starts: array[int]) -> None:
        self._file = file
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> list[Question]: ...
    def __getitem__(self, index: int | slice) -> Question | list[Question]:
        if isinstance(index, slice):
            return [self._at(start) for start in self._starts[index]]
        return self._at(self._starts[index])

    def __iter__(self) -> Iterator[Question]:
        return map(self._at, self._starts)

    def select(self, keep: Callable[[Question], bool]) -> QuestionFile:
        """Those that `keep` holds of, in the same file."""
        return QuestionFile(self._file, array("Q", (start for start in self._starts if keep(self._at(start)))))

    def _at(self, start: int) -> Question:
        self._file.seek(start)
        return Question.from_dict(json.loads(self._file.readline()))


@contextmanager
def open_questions(path: Path) -> Iterator[QuestionFile]:
    """All questions of a file; they can be read until the context ends.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        yield QuestionFile(file, array("Q", _starts(file)))


def write_questions(path: Path, questions: Iterable[Question]) -> Counter[Split]:
    """Write questions as they come; returns how many there are of each split.

    Raises:
        UserError: the file cannot be written.
    """
    splits: Counter[Split] = Counter()
    try:
        with path.open("w", encoding="utf-8") as file:
            for question in questions:
                splits[question.split] += 1
                file.write(json.dumps(question.to_dict(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free some space or mend the path") from None
    return splits


def select(questions: Sequence[Question], keep: Callable[[Question], bool]) -> Sequence[Question]:
    """Those that `keep` holds of; they stay on the disk if they lie there."""
    if isinstance(questions, QuestionFile):
        return questions.select(keep)
    return [question for question in questions if keep(question)]


def _starts(lines: Iterable[bytes]) -> Iterator[int]:
    at = 0
    for line in lines:
        yield at
        at += len(line)
