"""Texts that tell tokenizers apart, and conversations that tell template engines apart.

TEXTS is a small choice; `corpus_lines.corpus_lines()` has all the lines that parity compares.
"""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "  ",
    "   leading and trailing   ",
    "\t\ttabs\tbetween \t words\t",
    "one\ntwo\n\nthree\n\n\n four \n \n",
    "windows\r\nline\r\nends\r\n",
    "\u00a0no-break\u00a0space\u3000ideographic\u2009thin",
    "The quick brown fox jumps over the lazy dog.The end,really?Yes!",
    "I'm sure they've said we'd win, SHE'LL agree; it's y'all's. 'quoted' ''twice''",
    "0 1 12 123 1234 12345 123456789 3.14159 1,000,000 007 1e-9 -5 +3 2^10 50% $7.25 #1",
    "½ ² ٣٤٥ १२३ Ⅷ 一二三",
    "camelCase snake_case kebab-case SCREAMING CamelCASE x1y2z3 a1 1a",
    'def f(x):\n    return {"a": [1, 2.5, None], "b": x ** 2}  # comment\n',
    '{"name":"set_alarm","arguments":{"time":"07:30","days":["Mon","Tue"],"label":"caf\\u00e9"}}',
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt",
    "!!! ??? ... --- ___ *** === <<< >>> (( )) [[ ]] {{ }} || && ~~ `` ^^ \\\\ //",
    "naïve café Ångström Øresund façade Straße œuvre ﬁ",
    "Привет, мир! Сколько будет дважды два?",
    "Γειά σου Κόσμε, τι κάνεις;",
    "שלום עולם, מה שלומך?",
    "مرحبا بالعالم، كيف حالك؟",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก เป็นอย่างไรบ้าง",
    "你好，世界！这是一个测试。",
    "こんにちは世界。カタカナとひらがな。",
    "안녕하세요 세계, 잘 지내세요?",
    "Xin chào thế giới, bạn có khỏe không?",
    "გამარჯობა მსოფლიო · Բարեւ աշխարհ · ሰላም ልዑል",
    "🙂 🙃🙃 👍🏽 👩‍👩‍👧‍👦 🇫🇷🇯🇵 ❤️ 1️⃣ 🏴‍☠️",
    "e\u0301 a\u0308 combining, zero\u200bwidth\u200djoiner\ufeff",
    "𝒜𝓁𝓅𝒽𝒶 𐍈 𝟘𝟙𝟚 ∑∫√∞ ≠ ≤ → ⇒ ♥ ©®™ „“”‚‘’–—…",
    "control\u0001\u0007\u001b[0m\u007f bytes\u0085next\u2028line\u2029para",
    "Zyxwvut Qwrtplk Eëkaterina Nnamdi Xóchitl Þórunn O'Brien-Łukasz",
    "a" * 67 + " " + "ab" * 33 + " " + "7" * 31 + " " * 17 + "!" * 19,
)

CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "A coin is heads up. Ann flips it. Is it still heads up?"},),
    (
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "What is 2 + 2?"},
    ),
    (
        {"role": "user", "content": "Set an alarm"},
        {"role": "assistant", "content": 'For when?\nAnswer: {"tool": null}'},
        {"role": "user", "content": "  7:30, <b>every</b> day & night\n\n"},
    ),
    ({"role": "user", "content": ""},),
    ({"role": "user", "content": "Ünï©ødé 世界 🙂 {{ 7 * 7 }} {% raw %} 'quotes' \"double\" \\n \t\r\n"},),
    (
        {"role": "system", "content": "  Answer in one word.\n"},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "\nUno "},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": "Dos"},
        {"role": "user", "content": "Three"},
    ),
    (
        {"role": "system", "content": ""},
        {"role": "user", "content": "\n\n \t"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "again"},
    ),
    (
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because.", "reasoning_content": "It asks for a cause.\n"},
        {"role": "user", "content": "And <think>so</think>?"},
        {"role": "assistant", "content": "<think>\nA step.\n</think>\n\nSo it is."},
    ),
    # Orders that many templates refuse.
    (
        {"role": "user", "content": "first"},
        {"role": "user", "content": "second"},
    ),
    ({"role": "assistant", "content": "I begin."},),
    (
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "late"},
    ),
    ({"role": "system", "content": "alone"},),
)

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "set_alarm",
            "description": 'Sets an alarm; "label" is shown <b>as is</b>.',
            "parameters": {
                "type": "object",
                "properties": {
                    "time": {"type": "string", "description": "HH:MM, 24 hours"},
                    "days": {"type": "array", "items": {"type": "string", "enum": ["Mon", "Tue"]}},
                    "label": {"type": "string", "default": "café ☕"},
                },
                "required": ["time"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
)


def _call(name: str, arguments: Any, number: int) -> dict[str, Any]:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


TOOL_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    CONVERSATIONS[1],
    (
        {"role": "user", "content": "Wake me at 7:30"},
        {"role": "assistant", "content": None, "tool_calls": [_call("set_alarm", {"time": "07:30"}, 1)]},
        {"role": "tool", "name": "set_alarm", "tool_call_id": "call00001", "content": '{"ok": true}'},
    ),
    (
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "What time is it? Then wake me."},
        {
            "role": "assistant",
            "content": "Two calls.",
            "tool_calls": [_call("now", {}, 1), _call("set_alarm", {"time": "07:30", "days": ["Mon"], "n": 1.5}, 2)],
        },
        {"role": "tool", "name": "now", "tool_call_id": "call00001", "content": "06:12 <utc> & 'naïve'"},
        {"role": "tool", "name": "set_alarm", "tool_call_id": "call00002", "content": ""},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks"},
    ),
    # Arguments as text, as OpenAI's interface gives them.
    (
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "", "tool_calls": [_call("now", '{"zone": "UTC"}', 1)]},
        {"role": "tool", "tool_call_id": "call00001", "content": "06:12"},
    ),
)
