"""Recorded completions, served as they were received: paid-for traces go the same way as new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketstill_pipeline.jsonl import read_jsonl
from pocketstill_pipeline.prompts import fold

from .embedded.problems import read_asked
from .protocol import NOT_RECORDED, ChatRequest, ProtocolError

REQUIRED = ("question", "reasoning", "answer_prompt", "answer_completion", "gold")


@dataclass(frozen=True)
class Recording:
    """One recorded pair of completions: of the step-by-step request, and of the answer request."""

    reasoning: str
    answer_completion: str


Recordings = dict[str, list[Recording]]


def load_recordings(paths: Sequence[str | Path]) -> Recordings:
    """The recordings of each question (white space folded), in the order of the files: sample 0, 1, ...

    Raises:
        UserError: a file cannot be read or a line is broken; it names file, line and what is wrong.
    """
    recordings: Recordings = {}
    for path in paths:
        for row in read_jsonl(Path(path), REQUIRED, ("split",)):
            recording = Recording(row["reasoning"], row["answer_completion"])
            recordings.setdefault(fold(row["question"]), []).append(recording)
    return recordings


def replay(recordings: Recordings, request: ChatRequest, index: int, otherwise: Callable[[], str] | None) -> str:
    """What was recorded for choice `index` of a request. Token limits do not cut it: it has been cut.

    A question that is not recorded goes to `otherwise`.

    Raises:
        ProtocolError: 404 with code "not_recorded", when there is no such question or sample.
    """
    asked = read_asked(request.messages)
    found = recordings.get(fold(asked.question))
    if found is None:
        if otherwise is not None:
            return otherwise()
        said = f"No completion is recorded for this question: {asked.question[:80]!r}"
        raise ProtocolError(404, said, code=NOT_RECORDED)
    if asked.rationale is not None:
        # The same reasoning may be recorded twice with different answers: prefer the sample asked for.
        given = fold(asked.rationale)
        ordered = found[request.sample : request.sample + 1] + found
        for recording in ordered:
            if fold(recording.reasoning) == given:
                return recording.answer_completion
        raise ProtocolError(404, "This reasoning is not among the recorded ones.", code=NOT_RECORDED)
    sample = request.sample + index
    if sample >= len(found):
        said = f"Sample {sample + 1} of {len(found)} recorded was asked for: {asked.question[:80]!r}"
        raise ProtocolError(404, said, code=NOT_RECORDED)
    return found[sample].reasoning
