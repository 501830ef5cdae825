"""Instruction following as a phone assistant: a spoken command becomes one JSON tool call."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from .base import Problem, Solution, draw_name

_SPAN = {"minutes": (1, 90), "hour": (0, 23), "minute": (0, 59), "level": (0, 100), "degrees": (14, 28)}
_CHOICES: dict[str, list[str]] = {
    "room": ["kitchen", "bedroom", "bathroom", "hall", "office", "garage", "living room", "dining room"],
    "state": ["on", "off"],
    "day": ["today", "tomorrow", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "genre": ["jazz", "rock", "pop", "folk", "blues", "classical music", "hip hop", "techno"],
    "text": (
        "running late,on my way,see you soon,call me back,happy birthday,dinner is ready,"
        "the train is late,thanks for the help,good luck today,meeting moved to noon,"
        "stuck in traffic,almost there"
    ).split(","),
    "task": [
        "buy milk", "water the plants", "pay the rent", "call the bank", "take out the trash", "book a table",
        "feed the cat",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class _Tool:
    name: str
    description: str
    slots: tuple[str, ...]
    wordings: tuple[str, ...]


_TOOLS = (
    _Tool("set_timer", "Start a timer.", ("minutes",),
          ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer.", "Wake me in {minutes} minutes.")),
    _Tool("set_alarm", "Set an alarm at a time of day.", ("hour", "minute"),
          ("Set an alarm for {hour}:{minute}.", "Wake me up at {hour}:{minute}.", "Alarm at {hour}:{minute}, please.")),
    _Tool("send_message", "Send a text message to a contact.", ("contact", "text"),
          ("Tell {contact}: {text}.", "Send a message to {contact} saying {text}.",
           "Text {contact} that says {text}.")),
    _Tool("call", "Call a contact.", ("contact",),
          ("Call {contact}.", "Ring {contact} for me.", "I want to talk to {contact}.")),
    _Tool("play_music", "Play a genre of music.", ("genre",),
          ("Play some {genre}.", "Put on {genre}.", "I want to hear {genre}.")),
    _Tool("get_weather", "Tell the weather of a day.", ("day",),
          ("What is the weather {day}?", "Will it rain {day}?", "Weather for {day}, please.")),
    _Tool("switch_light", "Switch the light of a room on or off.", ("room", "state"),
          ("Turn {state} the light in the {room}.", "Switch the {room} light {state}.",
           "Light {state} in the {room}.")),
    _Tool("set_volume", "Set the volume in percent.", ("level",),
          ("Set the volume to {level}.", "Volume at {level} percent.", "Change the volume to {level} percent.")),
    _Tool("set_heating", "Set a room's temperature in degrees Celsius.", ("room", "degrees"),
          ("Heat the {room} to {degrees} degrees.", "Set the {room} to {degrees} degrees.")),
    _Tool("add_reminder", "Remember a task on a day.", ("task", "day"),
          ("Remind me to {task} {day}.", "{day}, remind me to {task}.", "Add a reminder to {task} {day}.")),
)  # fmt: skip


def _schema(slot: str) -> dict[str, Any]:
    if slot in _SPAN:
        low, high = _SPAN[slot]
        return {"type": "integer", "minimum": low, "maximum": high}
    return {"type": "string"}


TOOLS: list[dict[str, Any]] = [
    {
        "name": tool.name,
        "description": tool.description,
        "parameters": {
            "type": "object",
            "properties": {s: _schema(s) for s in tool.slots},
            "required": list(tool.slots),
        },
    }
    for tool in _TOOLS
]


def _pattern(wording: str) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
        slot = match[1]
        if slot in _SPAN:
            return f"(?P<{slot}>[0-9]+)"
        if slot in _CHOICES:
            return f"(?P<{slot}>{'|'.join(map(re.escape, _CHOICES[slot]))})"
        return f"(?P<{slot}>[^\\W\\d_]+)"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(wording)), re.IGNORECASE)


_PATTERNS = [(tool, _pattern(wording)) for tool in _TOOLS for wording in tool.wordings]


def _call(tool: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"tool": tool, "arguments": arguments})


def sample(rng: random.Random, unseen: bool) -> Problem:
    tool = rng.choice(_TOOLS)
    values: dict[str, Any] = {}
    for slot in tool.slots:
        if slot in _SPAN:
            values[slot] = rng.randint(*_SPAN[slot])
        else:
            values[slot] = rng.choice(_CHOICES[slot]) if slot in _CHOICES else draw_name(rng, unseen=unseen)
    said = {slot: f"{value:02d}" if slot == "minute" else value for slot, value in values.items()}
    text = rng.choice(tool.wordings).format(**said)
    text = rng.choice(("", "", "", "Please: ", "Hey, ")) + text
    return Problem("tool_call", text[0].upper() + text[1:], _call(tool.name, values), "json")


def solve(question: str, rng: random.Random, mistaken: bool) -> Solution | None:
    command = re.sub(r"^(?:Please: |Hey, )", "", question.strip())
    for tool, pattern in _PATTERNS:
        match = pattern.fullmatch(command)
        if match is None:
            continue
        values: dict[str, Any] = {}
        for slot in tool.slots:
            values[slot] = int(match[slot]) if slot in _SPAN else match[slot]
            if slot in _CHOICES:
                values[slot] = next(choice for choice in _CHOICES[slot] if choice.lower() == match[slot].lower())
        name = tool.name
        if mistaken:
            name, values = _spoil(name, values, rng)
        return Solution("", _call(name, values))
    return None


def _spoil(name: str, values: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    slot = rng.choice(list(values))
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice([tool.name for tool in _TOOLS if tool.name != name]), values
    if kind == 1:
        return name, {key: value for key, value in values.items() if key != slot}
    value = values[slot]
    return name, values | {slot: value + 1 if isinstance(value, int) else f"the {value}"}
