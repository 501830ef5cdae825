"""An Ollama Modelfile, whose Go template says what the student's Jinja template says.

Ollama renders prompts by a Go template of its own. One is derived by rendering conversations of marked messages and
taking what stands around the marks; it is kept only where it gives the same text as the Jinja template over every
conversation tried. See https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketstill.errors import UserError
from pocketstill.template import render
from pocketstill_export.checkpoint import Checkpoint, token_string, vocabulary
from pocketstill_export.parity.corpus import CONVERSATIONS, Message

_MARK = "\u2042mark\u2042"


@dataclass(frozen=True)
class Turns:
    """A template that is a plain sequence of turns: what stands around each role's content.

    `head` comes first when no system message does; `prompt` invites the answer. A template that takes no system
    message has no such role in `around`.
    """

    head: str
    around: dict[str, tuple[str, str]]
    prompt: str

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation with its generation prompt, as a Go template made of these turns gives it."""
        text = "" if "system" in self.around and messages[0]["role"] == "system" else self.head
        for message in messages:
            before, after = self.around[message["role"]]
            text += before + message["content"] + after
        return text + self.prompt


def read_turns(template: str, *, bos_token: str, eos_token: str) -> Turns | None:
    """The turns of a Jinja chat template; None for one that is no plain sequence of turns."""

    def rendered(messages: Sequence[Message], prompt: bool = True) -> str:
        return render(template, messages, add_generation_prompt=prompt, bos_token=bos_token, eos_token=eos_token)

    def pieces(*roles: str, prompt: bool = True) -> list[str]:
        return rendered([{"role": role, "content": _MARK} for role in roles], prompt).split(_MARK)

    try:
        turns = _solve(pieces)
        for conversation in map(_plain, CONVERSATIONS):
            known = all(message["role"] in turns.around for message in conversation)
            if known and conversation[-1]["role"] == "user" and turns.render(conversation) != rendered(conversation):
                return None
    except (UserError, ValueError):
        return None
    return turns


def _solve(pieces: Callable[..., list[str]]) -> Turns:
    """Each role's before and after, from the text between marks.

    Where the end of one turn and the start of the next meet, any cut will do that every turn shares: best the one
    that shows when no generation prompt follows, else all that a user's, an assistant's and the prompt's start share.

    Raises:
        ValueError: a message is missing from the text, or a turn depends on those around it.
    """
    opening, user_user, closing = pieces("user", "user")
    _, user_assistant, assistant_user, _ = pieces("user", "assistant", "user")
    shared = os.path.commonprefix([user_user, user_assistant, closing])  # noqa: RUF071 - characters are meant
    alone = pieces("user", prompt=False)[-1]
    after_user = alone if shared.startswith(alone) else shared
    before_user, before_assistant = (text.removeprefix(after_user) for text in (user_user, user_assistant))
    around = {
        "user": (before_user, after_user),
        "assistant": (before_assistant, _before(assistant_user, before_user)),
    }
    with contextlib.suppress(UserError, ValueError):
        before, system_user, _ = pieces("system", "user")
        around["system"] = (before, _before(system_user, before_user))
    return Turns(_before(opening, before_user), around, closing.removeprefix(after_user))


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("a turn depends on the one before it")
    return text.removesuffix(end)


def _plain(conversation: Sequence[Message]) -> list[Message]:
    """Without the white space around contents, which many templates strip."""
    return [{"role": str(m["role"]), "content": str(m.get("content") or "").strip()} for m in conversation]


def write_modelfile(
    checkpoint: Checkpoint,
    folder: Path,
    file: str | None,
    *,
    context_length: int,
    generation: Mapping[str, Any],
    license_name: str | None,
) -> None:
    """Writes `folder/Modelfile` for the GGUF `file` of that folder; without one there is none, an old one neither.

    Args:
        checkpoint: whose template, stop ids and special tokens are told.
        folder: the bundle.
        file: relative to the folder.
        context_length: in tokens.
        generation: defaults, `max_new_tokens` and `temperature` where given.
        license_name: an SPDX name; None leaves the line out.
    """
    path = folder / "Modelfile"
    path.unlink(missing_ok=True)
    if file is None:
        return
    config, texts = checkpoint.tokenizer_config, {i: text for text, i in vocabulary(checkpoint.tokenizer).items()}
    bos, eos = (token_string(config.get(key)) or "" for key in ("bos_token", "eos_token"))
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {context_length}"]
    if "max_new_tokens" in generation:
        lines.append(f"PARAMETER num_predict {int(generation['max_new_tokens'])}")
    lines.append(f"PARAMETER temperature {float(generation.get('temperature', 0.0)):g}")
    lines += [f"PARAMETER stop {_quoted(texts[token_id])}" for token_id in checkpoint.stop_ids]
    turns = read_turns(checkpoint.template, bos_token=bos, eos_token=eos)
    if turns is None:
        lines.append("# The model's chat template is no plain sequence of turns, so no TEMPLATE is given:")
        lines.append("# ollama looks for one that it knows in the GGUF file.")
    else:
        # llama.cpp adds the begin token by itself where the tokenizer does.
        added = bos if bos and _starts_with(checkpoint, bos) else ""
        lines.append(f'TEMPLATE """{_go_template(turns, added)}"""')
    if license_name:
        lines.append(f'LICENSE """{license_name}"""')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _starts_with(checkpoint: Checkpoint, bos: str) -> bool:
    tokenizer = checkpoint.load_tokenizer()
    return bool(tokenizer.encode("a").ids[:1] == [tokenizer.token_to_id(bos)])


def _go_template(turns: Turns, bos: str) -> str:
    """Every literal is a quoted string, so that Go trims and reads nothing of it."""

    def said(text: str) -> str:
        return f"{{{{ {_quoted(text)} }}}}" if text else ""

    def first(text: str) -> str:
        return said(text.removeprefix(bos))

    branches = []
    for role, (before, after) in turns.around.items():
        opening = first(before) if role == "system" else said(before)
        branches.append(f'if eq .Role "{role}" }}}}{opening}{{{{ .Content }}}}{said(after)}{{{{ ')
    body = "else ".join(branches)
    head = first(turns.head)
    if head and "system" in turns.around:
        head = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{head}{{{{ end }}}}'
    return f"{head}{{{{ range .Messages }}}}{{{{ {body}end }}}}{{{{ end }}}}{said(turns.prompt)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
