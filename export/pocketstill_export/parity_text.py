"""The parts of parity that are about text: token ids, rendered prompts, stop ids."""

from __future__ import annotations

import ctypes
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.bundle import Variant
from pocketstill.errors import UserError
from pocketstill.files import read_json
from pocketstill.template import render
from pocketstill_export.checkpoint import Checkpoint, token_string
from pocketstill_export.corpus import CONVERSATIONS, Message
from pocketstill_export.quantize import captured_log


@dataclass(frozen=True)
class TextCheck:
    """`what` was compared `compared` times for `variant`; `difference` is the first one, None when there is
    none.
    """

    what: str
    variant: str
    compared: int
    passed: bool
    difference: str | None = None


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
    added = [token["content"] for token in checkpoint.tokenizer.get("added_tokens") or ()][:64]
    samples = [*texts, *(f"a{token}b {token} c" for token in added), "".join(added)]
    if (checkpoint.tokenizer.get("normalizer") or {}).get("type") == "NFC":
        samples = [unicodedata.normalize("NFC", text) for text in samples]
    samples = list(dict.fromkeys(samples))
    for text in samples:
        wanted = list(tokenizer.encode(text, add_special_tokens=False).ids)
        try:
            found = encode(text) if text else []
        except (RuntimeError, UserError) as error:
            reason = f"the engine's own tokenizer fails ({str(error).splitlines()[0]})"
            return TextCheck("token ids", variant, len(samples), False, reason)
        if wanted != found:
            at = next((i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(wanted), len(found)) if at is None else at
            shown = text if len(text) <= 60 else text[:57] + "..."
            difference = f"{shown!r} at token {at}: {found[at : at + 3]} instead of {wanted[at : at + 3]}"
            return TextCheck("token ids", variant, len(samples), False, difference)
    return TextCheck("token ids", variant, len(samples), True)


def check_template(checkpoint: Checkpoint, folder: Path) -> list[TextCheck]:
    """The prompt that the runtime renders from the bundle against transformers' `apply_chat_template`.

    The template inside of tokenizer_config.json must be the same text as the file.
    """
    from transformers import PreTrainedTokenizerFast

    template = (folder / "chat_template.jinja").read_bytes().decode("utf-8")
    inline = read_json(folder / "tokenizer_config.json").get("chat_template")
    config = checkpoint.tokenizer_config
    bos, eos = (token_string(config.get(key)) for key in ("bos_token", "eos_token"))
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint.folder / "tokenizer.json"), bos_token=bos, eos_token=eos
    )
    difference = (
        None if inline == template else "tokenizer_config.json and chat_template.jinja hold different templates"
    )
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            wanted = _attempt(
                reference.apply_chat_template,
                list(messages),
                chat_template=checkpoint.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
            found = _attempt(
                render,
                template,
                messages,
                add_generation_prompt=prompt,
                bos_token=bos or "",
                eos_token=eos or "",
            )
            if difference is None and wanted != found:
                difference = f"{_roles(messages)}: {found!r} instead of {wanted!r}"
    where = "chat_template.jinja"
    return [TextCheck("rendered prompts", where, 2 * len(CONVERSATIONS), difference is None, difference)]


def _attempt(produce: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """The rendered prompt; None for a template that refuses the messages, which both must do alike."""
    import jinja2

    try:
        return str(produce(*args, **kwargs))
    except (UserError, jinja2.TemplateError, TypeError, ValueError, KeyError):
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
            checks.append(TextCheck("stop ids", variant.name, len(wanted), not lacking, difference))
    return checks


def _same_stops(where: str, wanted: set[int], value: Any) -> TextCheck:
    found = set(value if isinstance(value, list) else [value])
    difference = None if found == wanted else f"{sorted(found)} instead of {sorted(wanted)}"
    return TextCheck("stop ids", where, len(wanted), difference is None, difference)


def gguf_stop_ids(path: Path) -> set[int]:
    """The ids that llama.cpp ends a generation at.

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
            return {i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocab, ctypes.c_int32(i))}
        finally:
            llama_cpp.llama_model_free(model)
