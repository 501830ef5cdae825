from __future__ import annotations

import time
from typing import Any

import pytest
from conftest import TEMPLATE

from pocketstill.errors import UserError
from pocketstill.template import MAX_CHARACTERS, render

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  <b>&amp; 'naïve' 漢字 "},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "again?"},
]
TEMPLATES = {
    "ours": TEMPLATE,
    "loops, trims and json": (
        "{{ bos_token }}{%- for m in messages %}\n"
        "    {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
        "    {% set n = loop.index0 %}\n"
        "{{ n ~ '.' ~ m.role }}: {{ m.content | trim }} {{ m | tojson }} {{ m | tojson(indent=2) }}\n"
        "{% endfor %}\n"
        "{% if tools is defined and tools %}{{ tools | length }}{% endif %}"
        "{% if add_generation_prompt %}go{{ eos_token }}{% endif %}"
    ),
    "namespace and macro": (
        "{% macro show(m) %}[{{ m['role'] + ':' + m['content'] }}]{% endmacro %}"
        "{% set ns = namespace(last='') %}{% for m in messages %}{% set ns.last = m.content %}"
        "{{ show(m) }}{% endfor %}{% generation %}{{ ns.last }}{% endgeneration %}{{ '%d' | format(3) }}"
        "{{ 2 ** 8 }}{{ '=' * 5 }}{{ [1] * 2 }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers_does(name: str, prompt: bool) -> None:
    reference = pytest.importorskip("transformers.utils.chat_template_utils", reason="needs the workshop extra")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = render(TEMPLATES[name], TALK, add_generation_prompt=prompt, **tokens)
    theirs, _ = reference.render_jinja_template(
        [TALK], chat_template=TEMPLATES[name], add_generation_prompt=prompt, **tokens
    )
    assert ours == theirs[0]


TOOL_TEMPLATE = (
    "{% if tools is not none %}{{ tools | tojson }}{{ tools[0].function.name }}{% endif %}"
    "{% if bos_token is defined %}{{ bos_token }}{% endif %}{% if documents %}no{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.content is defined %}{{ m.content }}{% endif %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }})"
    "{% endfor %}{% endif %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}"
)
TOOL_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "what time is it?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "é<"}}}]},
    {"role": "tool", "content": "12:00", "name": "now"},
    {"role": "assistant", "content": "noon", "reasoning": "12 is noon"},
]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("tools", [None, [], TOOLS])
@pytest.mark.parametrize("tokens", [{}, {"bos_token": "<s>"}])
def test_tools_and_what_is_absent_are_seen_as_in_transformers(tools: Any, tokens: dict[str, str]) -> None:
    pytest.importorskip("tokenizers", reason="needs the workshop extra")
    transformers = pytest.importorskip("transformers", reason="needs the workshop extra")
    from tokenizers import Tokenizer, models

    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **tokens)
    template = TOOL_TEMPLATE if tools != [] else TOOL_TEMPLATE.replace("tools[0].function.name", "''")
    wanted = reference.apply_chat_template(TOOL_TALK, tools=tools, chat_template=template, tokenize=False)
    assert render(template, TOOL_TALK, tools=tools, add_generation_prompt=False, **tokens) == wanted


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for", "line 1"),
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ 'a' * 10**9 }}", "multiplies"),
        ("{{ 10 ** 1000 }}", "power"),
        ("{{ '%1000000000d' % 1 }}", "formats"),
        ("{% for i in range(99999) %}" + "a" * 20 + "{% endfor %}", "writes more"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "longer than",
        ),
        (
            "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "longer than",
        ),
    ],
)
def test_a_bad_template_is_one_clear_line(template: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        render(template, TALK)
    assert "\n" not in str(caught.value)


def test_an_endless_template_is_stopped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketstill.template.MAX_SECONDS", 0.2)
    loops = "{% set r = range(90000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
    start = time.perf_counter()
    with pytest.raises(UserError, match="runs for more than"):
        render(loops, TALK)
    assert time.perf_counter() - start < 2


def test_a_long_conversation_is_no_attack() -> None:
    talk: list[dict[str, Any]] = [{"role": "user", "content": "x" * 1000}] * 500
    assert 500_000 < len(render(TEMPLATE, talk)) < MAX_CHARACTERS
