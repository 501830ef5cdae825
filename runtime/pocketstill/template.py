"""Renders a chat template as transformers does, in a sandbox with limits.

A template is a program that comes with a model. It runs in Jinja's immutable sandbox, its loops and macros
look at a clock, and neither its output nor any text that it builds may grow beyond a bound.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pocketstill.errors import UserError

MAX_SECONDS = 2.0
MAX_CHARACTERS = 1_000_000
_MAX_SOURCE = 200_000
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _LimitError(Exception):
    pass


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here they are plain text."""

    tags = {"generation"}  # noqa: RUF012  (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Clocked(NodeTransformer):
    """Lets every loop and macro look at the clock, and every `~` check the length of what it joins."""

    def _tick_first(self, node: Any) -> Any:
        self.generic_visit(node)
        tick = nodes.Call(nodes.Name("__tick__", "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    visit_For = _tick_first  # noqa: N815
    visit_Macro = _tick_first  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  (jinja2's naming)
        self.generic_visit(node)
        return nodes.Call(nodes.Name("__join__", "load"), node.nodes, [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        return _bounded(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and (
            _size(left) * _as_int(right) > MAX_CHARACTERS or _size(right) * _as_int(left) > MAX_CHARACTERS
        ):
            raise _LimitError("it multiplies a text beyond all bounds")
        if operator == "**" and abs(_as_int(right)) > 64:
            raise _LimitError("it raises a number to a power above 64")
        if operator == "%" and isinstance(left, str):
            raise _LimitError("it formats text with %, which has no bound")
        return _bounded(super().call_binop(context, operator, left, right))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _as_int(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and abs(value) < 1e18 else 0


def _bounded(value: Any) -> Any:
    if _size(value) > MAX_CHARACTERS:
        raise _LimitError(f"it builds a value longer than {MAX_CHARACTERS:,}")
    return value


def _join(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise _LimitError(f"it builds a text longer than {MAX_CHARACTERS:,}")
    return "".join(texts)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own tojson escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@lru_cache(maxsize=16)
def _compile(source: str) -> tuple[_Environment, Any]:
    if len(source) > _MAX_SOURCE:
        raise UserError(f"the chat template is {len(source):,} characters long; at most {_MAX_SOURCE:,} are read")
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["__join__"] = _join
    try:
        tree = _Clocked().visit(environment.parse(source))
        tree.set_environment(environment)
        return environment, environment.compile(tree)
    except TemplateSyntaxError as error:
        raise UserError(f"the chat template, line {error.lineno}: {error.message}; mend chat_template.jinja") from error
    except RecursionError as error:
        raise UserError("the chat template nests too deeply; mend chat_template.jinja") from error


def _clock(seconds: float) -> Callable[[], None]:
    deadline = time.monotonic() + seconds

    def tick() -> None:
        if time.monotonic() > deadline:
            raise _LimitError(f"it runs for more than {seconds:g} s")

    return tick


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees of a message: no keys without a value, and reasoning under the names it is known by."""
    shown = {key: value for key, value in message.items() if value is not None}
    reasoning = next((shown[key] for key in _REASONING if key in shown), None)
    return shown if reasoning is None else {"thinking": reasoning, **shown, "reasoning_content": reasoning}


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> str:
    """The prompt that a chat template makes of `messages`, equal to transformers' `apply_chat_template`.

    Args:
        template: the Jinja source, as in chat_template.jinja.
        messages: dicts with at least `role`; what is None in them is left out, as transformers does.
        add_generation_prompt: ends the prompt where the assistant's words begin.
        bos_token: what the template finds under that name, and so for `eos_token`; an empty one is not defined.
        tools: what the model may call, JSON schemas of functions.
        extra: further variables of the template, such as `documents`.

    Raises:
        UserError: when the template is broken, refuses the messages, or exceeds 2 s or a million characters.
    """
    environment, code = _compile(template)
    tick = _clock(MAX_SECONDS)
    special = {"bos_token": bos_token, "eos_token": eos_token}
    variables = {
        "messages": [_shown(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        # Without any, a template finds None: `tools is not none` must not be true of nothing.
        "tools": None if tools is None else [dict(tool) for tool in tools],
        "documents": None,
        **{name: token for name, token in special.items() if token},
        **extra,
    }
    compiled = environment.template_class.from_code(environment, code, {**environment.globals, "__tick__": tick})
    parts: list[str] = []
    length = 0
    try:
        for part in compiled.generate(variables):
            parts.append(part)
            length += len(part)
            if length > MAX_CHARACTERS:
                raise _LimitError(f"it writes more than {MAX_CHARACTERS:,} characters")
    except _LimitError as error:
        raise UserError(f"the chat template was stopped: {error}; mend chat_template.jinja") from error
    except TemplateError as error:
        raise UserError(f"the chat template refuses these messages: {error.message}") from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"the chat template fails on these messages: {type(error).__name__}: {error}") from error
    return "".join(parts)
