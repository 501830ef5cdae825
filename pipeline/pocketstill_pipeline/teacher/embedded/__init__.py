"""The embedded teacher: a rule-based stand-in for a large model, behind the same protocol.

It behaves like one where it matters to the rest of the pipeline: what it says follows from what it was asked, some
of it is wrong, and some badly formatted. Everything is drawn from the request and its seed, so that a run can be
repeated. Each module answers the requests of one kind, which it knows by the prompts that built them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable

from pocketstill_pipeline.teacher import TeacherConfig
from pocketstill_pipeline.teacher.protocol import ChatRequest

from . import curation, expansion, expansion_paraphrase, feedback, in_context, labeling, problems, self_knowledge

Responder = Callable[[TeacherConfig, ChatRequest, random.Random], str | None]

# The first one that knows the request answers it.
RESPONDERS: tuple[Responder, ...] = (
    in_context.respond,
    curation.respond,
    labeling.respond,
    expansion.respond,
    expansion_paraphrase.respond,
    feedback.respond,
    self_knowledge.respond,
    # Behind all others, because it looks for a task in any text.
    expansion.answer,
)


def answer(config: TeacherConfig, request: ChatRequest, index: int) -> str:
    """What the embedded teacher replies as choice `index` of a request, before any limit cuts it."""
    seed = _seed(config, request, index)
    for respond in RESPONDERS:
        said = respond(config, request, random.Random(seed))
        if said is not None:
            return said
    return problems.answer(config, request, index)


def _seed(config: TeacherConfig, request: ChatRequest, index: int) -> int:
    drawn = "greedy" if request.temperature == 0 else f"{request.seed}|{request.sample + index}"
    rates = f"{config.seed}|{config.mistakes}|{config.noise}"
    material = f"{rates}|{json.dumps(request.messages)}|{drawn}".encode()
    return int.from_bytes(hashlib.blake2b(material, digest_size=8).digest(), "big")
