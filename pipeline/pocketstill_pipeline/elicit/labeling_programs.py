"""Labeling by programs: the teacher writes one for each question, and its result is the answer.

Program of thoughts (Chen et al. 2022, arXiv 2211.12588, section 2): the reasoning is left to the teacher and the
calculation to an interpreter, so that an answer is never wrong by a slip of arithmetic. The programs run in `sandbox`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Literal

from pydantic import Field

from pocketstill import grading
from pocketstill_pipeline.asking import Reply
from pocketstill_pipeline.example import Elicited, Question
from pocketstill_pipeline.teacher.protocol import count_tokens

from .base import Context, Planned, Settings, trouble
from .prompts.labeling import explain_request, program_of, program_request
from .sampling import RATIONALE_TOKENS, options_of, tidy, unanswered, units
from .sandbox import Limits, Outcome, Sandbox

_PROGRAM_TOKENS = (30.0, 150.0)
# Tells whoever reads rationales as prose that this one is none.
PROGRAM = "program"
_STATES = {"failed": "program_failed", "forbidden": "program_forbidden", "timeout": "program_timeout"}


class ProgramOfThought(Settings):
    """Ask every question of the skills for a program that sets `answer`, and run it."""

    method: Literal["program_of_thought"] = "program_of_thought"
    skills: list[str] = Field(default_factory=list, description="whose questions; all when left out")
    rationale: Literal["program", "text"] = Field(
        "program", description="what the student learns: the program, or the same in words, asked for behind it"
    )
    cpu_s: float = Field(2.0, gt=0.0, le=60.0, description="processor time of a program, in seconds")
    memory_mib: int = Field(256, ge=64, description="address space of a program")
    workers: int | None = Field(None, ge=1, description="programs run at once; one a core when left out")
    weak_sandbox: bool = Field(False, description="run programs also where the system cannot confine them")


async def program_of_thought(settings: ProgramOfThought, context: Context) -> AsyncIterator[Elicited]:
    """One sample after the other, question by question; held-out questions once, greedily.

    Raises:
        UserError: programs cannot be run here, or not confined.
    """
    limits = Limits(settings.cpu_s, max(30.0, 10 * settings.cpu_s), settings.memory_mib)

    async with Sandbox(limits, workers=settings.workers, weak=settings.weak_sandbox) as sandbox:

        async def one(unit: tuple[Question, int]) -> Elicited:
            question, sample = unit
            options = options_of(settings, question, sample)
            request = [*question.before, *program_request(question.text, question.kind)]
            reply = await context.teacher.ask(request, **options)
            outcome = await sandbox.run(program_of(reply.text)) if trouble(reply) is None else None
            found = read_program(question, sample, reply, outcome, graded=context.skills[question.skill].graded)
            if settings.rationale == "program" or found.answer is None:
                return found
            behind = explain_request(question.text, question.kind, reply.text.strip(), found.answer)
            return explained(found, await context.teacher.ask([*question.before, *behind], **options))

        async for found in context.teacher.map(one, units(context.of_skills(settings.skills), settings, context)):
            yield found


def read_program(
    question: Question, sample: int, reply: Reply, outcome: Outcome | None, *, graded: bool = True
) -> Elicited:
    """A program and what it gave; `outcome` is None when there is no program to run."""
    reason, detail = trouble(reply) or (None, "")
    answer = None
    if outcome is not None and outcome.state == "done":
        answer = answer_of(outcome.answer, question)
        if answer is None:
            reason, detail = "no_answer", f"the program gives {outcome.answer[:200]!r}"
    elif outcome is not None:
        reason, detail = _STATES[outcome.state], outcome.detail
    return replace(
        unanswered(question, sample, "program_of_thought", graded=graded),
        answer=answer,
        completion=reply.text,
        rationale=program_of(reply.text) if reply.text.strip() else "",
        source=(reply.key,),
        tags=(*question.tags, PROGRAM),
        reason=reason,
        detail=detail,
    )


def answer_of(result: str, question: Question) -> str | None:
    """What a program's result says, read as an answer of the question's kind."""
    # Behind a marker of format fractions are read, which is how exact results come.
    return grading.extract(result if question.kind == "json" else f"--> {result}", question.kind)


def explained(found: Elicited, reply: Reply) -> Elicited:
    """The same with a rationale in words, which must come to what the program gave."""
    rationale, _ = grading.split_completion(reply.text)
    said = grading.extract(reply.text, found.kind)
    made = replace(
        found,
        rationale=tidy(rationale),
        completion=reply.text,
        source=(*found.source, reply.key),
        tags=(*(tag for tag in found.tags if tag != PROGRAM), "checked_by_program"),
    )
    problem = trouble(reply)
    if problem is None and not made.rationale:
        problem = "empty", "an answer without a rationale"
    if problem is None and not grading.equal(said, found.answer or "", found.kind):
        problem = "program_disagrees", f"in words {said!r}, by the program {found.answer!r}"
    return made if problem is None else replace(made, reason=problem[0], detail=problem[1])


def plan_program_of_thought(settings: ProgramOfThought, context: Context) -> list[Planned]:
    """The programs, and the explanations of those that ran."""
    sizes = [
        sum(count_tokens(m["content"]) for m in program_request(question.text, question.kind))
        for question, _ in units(context.of_skills(settings.skills), settings, context)
    ]
    count, mean = len(sizes), sum(sizes) / max(len(sizes), 1)
    found = [Planned("programs", (count, count), (mean, mean), _PROGRAM_TOKENS)]
    if settings.rationale == "text":
        low, high = (mean + tokens + 40 for tokens in _PROGRAM_TOKENS)
        # From none to all of the programs run through.
        found.append(Planned("explanations", (0, count), (low, high), RATIONALE_TOKENS))
    return found
