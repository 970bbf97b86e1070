"""Tools: what an agent may call in its turn, and how a call is read out of its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool with one string argument.

    Attributes:
        name: also the tag: `<name> argument </name>`.
        description: one sentence, for the schema.
        argument: the argument's name in a JSON call.
    """

    name: str
    description: str
    argument: str

    def schema(self) -> dict[str, Any]:
        """The JSON schema that chat templates and OpenAI-style endpoints take."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {self.argument: {"type": "string"}},
                    "required": [self.argument],
                },
            },
        }


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that was read: the tool's name and its argument, stripped of outer white space."""

    name: str
    argument: str


@dataclass(frozen=True, slots=True)
class ToolError:
    """A turn that holds no single readable call; `message` tells the agent what was wrong."""

    message: str


_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def parse_call(text: str, tools: Sequence[Tool]) -> ToolCall | ToolError:
    """Read the one tool call of a turn.

    Accepted: `<search> query </search>` for a tool named search; a JSON object
    `{"name": "search", "arguments": {"query": "..."}}`, alone, fenced, inside
    `<tool_call>...</tool_call>`, or as OpenAI's `{"tool_calls": [{"function": ...}]}`. Reasoning
    around a call, and anything in `<think>...</think>`, is passed over. More than one call in a
    turn is an error: a policy could otherwise try every answer at once.
    """
    text = _THINKING.sub("", text)
    found: list[ToolCall | ToolError] = _tagged(text, tools)
    for raw in _json_candidates(text):
        found += _json_calls(raw, tools)
    errors = [c for c in found if isinstance(c, ToolError)]
    if errors:
        return errors[0]
    if len(found) > 1:
        return ToolError(f"{len(found)} calls in one turn. Make one call per turn.")
    if not found:
        return ToolError(f"No call found. {_usage(tools)}")
    return found[0]


def _usage(tools: Sequence[Tool]) -> str:
    return "Reply with " + " or ".join(f"<{t.name}> {t.argument} </{t.name}>" for t in tools) + "."


def _tagged(text: str, tools: Sequence[Tool]) -> list[ToolCall | ToolError]:
    found: list[ToolCall | ToolError] = []
    for tool in tools:
        opening, closing = f"<{tool.name}>", f"</{tool.name}>"
        if text.count(opening) != text.count(closing):
            found.append(ToolError(f"{opening} and {closing} do not match. {_usage([tool])}"))
            continue
        # Split, not a regular expression: linear time on any input.
        for piece in text.split(opening)[1:]:
            inside, closed, _ = piece.partition(closing)
            if not closed:
                found.append(ToolError(f"{opening} is not closed. {_usage([tool])}"))
            elif not inside.strip():
                found.append(ToolError(f"The {tool.argument} is empty. {_usage([tool])}"))
            else:
                found.append(ToolCall(tool.name, inside.strip()))
    return found


def _json_candidates(text: str) -> list[str]:
    wrapped = _between(text, "<tool_call>", "</tool_call>")
    if wrapped:
        return wrapped
    fenced = text.split("```")[1::2]  # the odd pieces stand inside a fence
    inside = [f.removeprefix("json").strip() for f in fenced] or [text.strip()]
    return [piece for piece in inside if piece.startswith(("{", "["))]


def _between(text: str, opening: str, closing: str) -> list[str]:
    # Not a regular expression: many openings and no closing would take it quadratic time.
    pieces = (piece.partition(closing) for piece in text.split(opening)[1:])
    return [inside for inside, closed, _ in pieces if closed]


def _json_calls(raw: str, tools: Sequence[Tool]) -> list[ToolCall | ToolError]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return [ToolError(f"The tool call is not JSON: {error}.")]
    if isinstance(data, Mapping) and "tool_calls" in data:
        data = data["tool_calls"]
    calls = data if isinstance(data, list) else [data]
    return [_json_call(call, tools) for call in calls]


def _json_call(call: Any, tools: Sequence[Tool]) -> ToolCall | ToolError:
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        return ToolError('A tool call is {"name": ..., "arguments": {...}}.')
    by_name = {t.name: t for t in tools}
    tool = by_name.get(call["name"])
    if tool is None:
        known = ", ".join(by_name)
        return ToolError(f"There is no tool {call['name']!r}. Tools: {known}.")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's endpoint sends the arguments as a JSON string
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    value = arguments.get(tool.argument) if isinstance(arguments, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        return ToolError(f'{tool.name} takes {{"{tool.argument}": "..."}}, a non-empty string.')
    return ToolCall(tool.name, value.strip())
