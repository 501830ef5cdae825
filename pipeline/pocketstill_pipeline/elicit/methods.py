"""Every method of elicitation by its name in a recipe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

from pydantic import Field

from pocketstill_pipeline.example import Elicited

from . import (
    curation,
    dialogue,
    direct,
    feature,
    in_context,
    labeling,
    labeling_programs,
    labeling_tools,
    traces,
    zero_shot,
)
from .base import Context, Planned, Settings
from .expansion import evol_instruct, paraphrase, self_instruct
from .feedback import harder, prefer, rank, revise, score
from .self_knowledge import lmsi, rest, self_judge, star


class Method(NamedTuple):
    """What a recipe may say of it, the function that elicits, and the one that says what that will ask for."""

    settings: type[Settings]
    elicit: Callable[[Any, Context], AsyncIterator[Elicited]]
    plan: Callable[[Any, Context], list[Planned]]


METHODS: dict[str, Method] = {
    "few_shot_cot": Method(labeling.FewShot, labeling.few_shot, labeling.plan_few_shot),
    "system_messages": Method(labeling.SystemMessages, labeling.system_messages, labeling.plan_system_messages),
    "program_of_thought": Method(
        labeling_programs.ProgramOfThought,
        labeling_programs.program_of_thought,
        labeling_programs.plan_program_of_thought,
    ),
    "tool_calls": Method(labeling_tools.ToolCalls, labeling_tools.tool_calls, labeling_tools.plan_tool_calls),
    "zero_shot_cot": Method(zero_shot.ZeroShot, zero_shot.zero_shot_cot, zero_shot.plan),
    "from_topics": Method(curation.FromTopics, curation.from_topics, curation.plan_topics),
    "from_documents": Method(curation.FromDocuments, curation.from_documents, curation.plan_documents),
    "self_chat": Method(dialogue.SelfChat, dialogue.self_chat, dialogue.plan),
    "traces": Method(traces.Traces, traces.traces, traces.plan),
    "self_instruct": Method(self_instruct.SelfInstruct, self_instruct.self_instruct, self_instruct.plan),
    "evol_instruct": Method(evol_instruct.EvolInstruct, evol_instruct.evol_instruct, evol_instruct.plan),
    "paraphrase": Method(paraphrase.Paraphrase, paraphrase.paraphrase, paraphrase.plan),
    "top_logprobs": Method(feature.TopLogprobsSettings, feature.top_logprobs, feature.plan_top_logprobs),
    "score": Method(score.ScoreSettings, score.score, score.plan_score),
    "prefer": Method(prefer.PreferSettings, prefer.prefer, prefer.plan_prefer),
    "rank": Method(rank.RankSettings, rank.rank, rank.plan_rank),
    "revise": Method(revise.ReviseSettings, revise.revise, revise.plan_revise),
    "harder": Method(harder.HarderSettings, harder.harder, harder.plan_harder),
    "rest": Method(rest.RestSettings, rest.rest, rest.plan_rest),
    "star": Method(star.StarSettings, star.star, star.plan_star),
    "lmsi": Method(lmsi.LmsiSettings, lmsi.lmsi, lmsi.plan_lmsi),
    "self_judge": Method(self_judge.SelfJudgeSettings, self_judge.self_judge, self_judge.plan_self_judge),
    "direct": Method(direct.Direct, direct.direct, direct.plan),
    "in_context": Method(in_context.InContext, in_context.in_context, in_context.plan),
}

# The settings of an `[[elicit]]` entry: those of its method.
if TYPE_CHECKING:
    Entry: TypeAlias = Settings
else:
    _SETTINGS = reduce(or_, (method.settings for method in METHODS.values()))
    Entry = Annotated[_SETTINGS, Field(discriminator="method")]
