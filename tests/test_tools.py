"""Reading a tool call out of an assistant's turn."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.tools import Tool, ToolCall, ToolError, parse_call

SEARCH = Tool("search", "Search.", "query")
ANSWER = Tool("answer", "Answer.", "answer")
TOOLS = (SEARCH, ANSWER)


@pytest.mark.parametrize(
    "text",
    [
        "<search> Ada Marlow </search>",
        "I will look. <search>Ada Marlow</search> Then we will see.",
        "<think>perhaps <answer>no</answer></think><search>Ada Marlow</search>",
        '{"name": "search", "arguments": {"query": "Ada Marlow"}}',
        '<tool_call>\n{"name": "search", "arguments": {"query": " Ada Marlow"}}\n</tool_call>',
        'Sure:\n```json\n{"name": "search", "arguments": {"query": "Ada Marlow"}}\n```',
        '{"tool_calls": [{"function": {"name": "search", '
        '"arguments": "{\\"query\\": \\"Ada Marlow\\"}"}}]}',
    ],
)
def test_every_accepted_form_gives_the_same_call(text: str) -> None:
    assert parse_call(text, TOOLS) == ToolCall("search", "Ada Marlow")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words", "No call found"),
        ("<search>a</search><answer>b</answer>", "2 calls in one turn"),
        ("<answer>a</answer><answer>b</answer>", "2 calls in one turn"),
        ("<search>a", "do not match"),
        ("a</search>", "do not match"),
        ("</search>a<search>", "not closed"),
        ("<search>  </search>", "empty"),
        ('{"name": "fly", "arguments": {}}', "no tool 'fly'"),
        ('{"name": "search", "arguments": {"query": ["a"]}}', "non-empty string"),
        ('{"name": "search", "arguments": "not json"}', "non-empty string"),
        ('{"name": "search", "arguments": {"query": "a"}', "not JSON"),
        ("<tool_call>[1]</tool_call>", '"name"'),
        ("[" * 5000, "not JSON"),
        ("<think><answer>a</answer>", "No call found"),
    ],
)
def test_what_cannot_be_read_says_what_was_wrong(text: str, said: str) -> None:
    call = parse_call(text, TOOLS)
    assert isinstance(call, ToolError)
    assert said in call.message


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    assert isinstance(parse_call(text, TOOLS), (ToolCall, ToolError))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_argument_survives_json(query: str) -> None:
    call = parse_call(json.dumps({"name": "search", "arguments": {"query": query}}), TOOLS)
    if query.strip() and "<" not in query:
        assert call == ToolCall("search", query.strip())


def test_hostile_text_is_read_in_linear_time() -> None:
    begun = time.process_time()
    for piece in ("<search>", "</search>", "<think>", "```json\n", "<tool_call>", "{"):
        assert isinstance(parse_call(piece * 100_000, TOOLS), ToolError)
    assert time.process_time() - begun < 20  # quadratic time would take hours


def test_the_schema_is_what_chat_templates_take() -> None:
    function = SEARCH.schema()["function"]
    assert function["name"] == "search"
    assert function["parameters"]["required"] == ["query"]
