"""The parts of parity that are about text: token ids, rendered prompts, stop ids."""

from __future__ import annotations

import ctypes
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pocketstill.bundle import Variant
from pocketstill.errors import UserError
from pocketstill.files import read_json
from pocketstill.template import render
from pocketstill_export.checkpoint import Checkpoint, token_string
from pocketstill_export.gguf.llama_quantizer import captured_log
from pocketstill_export.parity.causes import ids_cause, template_cause
from pocketstill_export.parity.corpus import CONVERSATIONS, TOOL_CONVERSATIONS, TOOLS, Message

# Faults of onnxruntime-genai's own tokenizer, which splits by rules written by hand. Byte-level ones: U+0085 is no
# blank to it, and a run of blanks is cut after its first line end where a blank line and more blanks follow. Those
# without a pre-tokenizer, as SentencePiece's: it splits them all the same, at blanks that are not single and at
# apostrophes. Our runtime, transformers and transformers.js read tokenizer.json by the rules in it, so such a text is
# counted and fails nothing.
_GENAI_FAULTS = re.compile(r"\x85|[\r\n][^\S\r\n]+[\r\n]+[^\S\r\n]")
_GENAI_FAULTS_UNSPLIT = re.compile(r"(^|\s)\s|[\xa0\x85\r']")
_ADDED = 64


@dataclass(frozen=True)
class TextCheck:
    """`what` was compared `compared` times for `variant`; `difference` is the first one, None when there is
    none.

    `known` of those compared differ by a fault that the engine is known for, which is no difference of the export.
    `cause` is the likely one of the difference.
    """

    what: str
    variant: str
    compared: int
    passed: bool
    difference: str | None = None
    known: int = 0
    cause: str | None = None


def compare_ids(
    tokenizer: Any,
    checkpoint: Checkpoint,
    variant: str,
    encode: Callable[[str], list[int]],
    texts: Iterable[str],
) -> TextCheck:
    """The ids of the student's tokenizer against those of `encode`, an engine's own tokenizer, text by text.

    Special tokens inside of the texts are compared too: each stop and added token is tried between words. A
    student whose tokenizer normalizes to NFC is compared over NFC text, since the engines do not normalize.
    """
    added = [token["content"] for token in checkpoint.tokenizer.get("added_tokens") or ()][:_ADDED]
    samples = [*texts, *(f"a{token}b {token} c" for token in added), "".join(added)]
    if (checkpoint.tokenizer.get("normalizer") or {}).get("type") == "NFC":
        samples = [unicodedata.normalize("NFC", text) for text in samples]
    samples = list(dict.fromkeys(samples))
    faults = _GENAI_FAULTS if checkpoint.tokenizer.get("pre_tokenizer") else _GENAI_FAULTS_UNSPLIT
    known = 0
    for text, wanted in zip(samples, _encoded(tokenizer, samples), strict=True):
        try:
            found = encode(text) if text else []
        except (RuntimeError, UserError) as error:
            reason = f"the engine's own tokenizer fails ({str(error).splitlines()[0]})"
            return TextCheck("token ids", variant, len(samples), False, reason, known)
        if wanted == found:
            continue
        if variant.startswith("onnx") and faults.search(text):
            known += 1
            continue
        cause = ids_cause(text, wanted, found, tokenizer)
        difference = _ids_difference(text, wanted, found, tokenizer)
        return TextCheck("token ids", variant, len(samples), False, difference, known, cause)
    return TextCheck("token ids", variant, len(samples), True, None, known)


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [list(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _ids_difference(text: str, wanted: Sequence[int], found: Sequence[int], tokenizer: Any) -> str:
    """The text about the first other token, both ids there, and what they spell."""
    at = next((i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(wanted), len(found)) if at is None else at
    shown = text
    if len(text) > 60:
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        start = max(0, offsets[at][0] - 24) if at < len(offsets) else len(text) - 48
        shown = ("..." if start else "") + text[start : start + 48] + ("..." if start + 48 < len(text) else "")

    def spelt(ids: Sequence[int]) -> str:
        tokens = " ".join(repr(tokenizer.id_to_token(i)) for i in ids[at : at + 3])
        return f"{list(ids[at : at + 3])} ({tokens or 'the end'})"

    return f"{shown!r} at token {at}: {spelt(found)} instead of {spelt(wanted)}"


def check_template(checkpoint: Checkpoint, folder: Path, variants: Sequence[Variant] = ()) -> list[TextCheck]:
    """The prompt that the runtime renders from the bundle against transformers' `apply_chat_template`, with tools and
    without, and the template inside of each GGUF file.

    The template inside of tokenizer_config.json must be the same text as the file. Messages that one side refuses
    must be refused by the other.
    """
    from transformers import PreTrainedTokenizerFast

    template = (folder / "chat_template.jinja").read_bytes().decode("utf-8")
    inline = read_json(folder / "tokenizer_config.json").get("chat_template")
    config = checkpoint.tokenizer_config
    tokens = {key: token for key in ("bos_token", "eos_token") if (token := token_string(config.get(key)))}
    reference = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint.folder / "tokenizer.json"), **tokens)
    compared, difference, cause = 0, None, None
    if inline != template:
        difference, cause = "tokenizer_config.json and chat_template.jinja hold different templates", "an edited copy"
    cases: list[tuple[tuple[Message, ...], list[dict[str, Any]] | None]]
    cases = [(messages, None) for messages in (*CONVERSATIONS, *TOOL_CONVERSATIONS)]
    cases += [(messages, list(TOOLS)) for messages in TOOL_CONVERSATIONS]
    for (messages, tools), prompt in product(cases, (True, False)):
        asked = {"add_generation_prompt": prompt, "tools": tools}
        chat = list(messages)
        wanted = _attempt(
            reference.apply_chat_template, chat, chat_template=checkpoint.template, tokenize=False, **asked
        )
        found = _attempt(render, template, chat, **tokens, **asked)
        compared += 1
        if difference is None and wanted != found:
            with_tools = " with tools" if tools else ""
            difference = f"{_roles(messages)}{with_tools}: {_first_other(found, wanted)}"
            cause = template_cause(wanted, found)
    checks = [TextCheck("rendered prompts", "chat_template.jinja", compared, difference is None, difference, 0, cause)]
    return checks + [_same_template(checkpoint, folder, v) for v in variants if v.engine == "gguf"]


def _same_template(checkpoint: Checkpoint, folder: Path, variant: Variant) -> TextCheck:
    inside = read_gguf(folder / variant.file).template
    same = inside == checkpoint.template
    difference = None if same else f"tokenizer.chat_template: {_first_other(inside, checkpoint.template)}"
    cause = None if same else "the file was made with another template, or edited since"
    return TextCheck("template", variant.name, 1, same, difference, 0, cause)


def _first_other(found: str | None, wanted: str | None) -> str:
    if found is None or wanted is None:
        return "refused" if found is None else "accepted where transformers refuses"
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    start = max(0, at - 20)
    return f"{found[start : at + 40]!r} instead of {wanted[start : at + 40]!r} at character {at}"


def _attempt(produce: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """The rendered prompt; None for a template that refuses the messages, which both must do alike."""
    import jinja2

    try:
        return str(produce(*args, **kwargs))
    except (UserError, jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return None


def _roles(messages: Sequence[Message]) -> str:
    return "+".join(message["role"] for message in messages)


def check_stop_ids(checkpoint: Checkpoint, folder: Path, variants: Sequence[Variant]) -> list[TextCheck]:
    """generation_config.json, genai_config.json and what llama.cpp stops at, against the checkpoint's stop
    ids.

    llama.cpp adds ids that it knows by their text (`<|im_end|>`, `<|fim_pad|>`), so it may stop at more,
    never at fewer.
    """
    wanted = set(checkpoint.stop_ids)
    checks = [
        _same_stops("generation_config.json", wanted, read_json(folder / "generation_config.json")["eos_token_id"])
    ]
    if (folder / "genai_config.json").is_file():
        model = read_json(folder / "genai_config.json")["model"]
        checks.append(_same_stops("genai_config.json", wanted, model["eos_token_id"]))
    for variant in variants:
        if variant.engine == "gguf":
            lacking = sorted(wanted - gguf_stop_ids(folder / variant.file))
            difference = f"llama.cpp does not stop at {lacking}" if lacking else None
            cause = "tokenizer.ggml.eos_token_id, eot_token_id or eom_token_id was lost" if lacking else None
            checks.append(TextCheck("stop ids", variant.name, len(wanted), not lacking, difference, 0, cause))
    return checks


def _same_stops(where: str, wanted: set[int], value: Any) -> TextCheck:
    found = set(value if isinstance(value, list) else [value])
    difference = None if found == wanted else f"{sorted(found)} instead of {sorted(wanted)}"
    cause = None if difference is None else f"eos_token_id of {where} was written for another model, or edited"
    return TextCheck("stop ids", where, len(wanted), difference is None, difference, 0, cause)


@dataclass(frozen=True)
class GgufVocabulary:
    """What llama.cpp reads in a GGUF file: the ids that it ends a generation at, and the chat template."""

    stop_ids: frozenset[int]
    template: str | None


def gguf_stop_ids(path: Path) -> set[int]:
    """The ids that llama.cpp ends a generation at; raises as `read_gguf` does."""
    return set(read_gguf(path).stop_ids)


def read_gguf(path: Path) -> GgufVocabulary:
    """The file's vocabulary as llama.cpp has it, without its weights.

    Raises:
        UserError: when llama.cpp cannot read the file's vocabulary.
    """
    import llama_cpp

    with captured_log() as lines:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            words = " ".join("".join(lines).split("\n")[-3:]).strip()
            raise UserError(f"llama.cpp cannot read {path} ({words}); export it again")
        try:
            vocab = llama_cpp.llama_model_get_vocab(model)
            count = int(llama_cpp.llama_vocab_n_tokens(vocab))
            stops = {i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocab, ctypes.c_int32(i))}
            template = llama_cpp.llama_model_chat_template(model, None)
            return GgufVocabulary(frozenset(stops), None if template is None else template.decode("utf-8", "replace"))
        finally:
            llama_cpp.llama_model_free(model)
