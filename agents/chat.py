"""Chat: messages to tokens, such that a conversation only ever grows at its end.

A rollout's tokens are `opening(messages)`, then sampled ids, then `continuation(observation)`, then
sampled ids, and so on: sampled ids are kept as they are, never decoded and encoded again. That is
sound only for a chat template that renders a longer conversation as an extension of the shorter
one; `Chat` proves it when it is made.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2

Message = Mapping[str, Any]

CHATML = """\
{%- for message in messages %}
{%- if loop.first and tools %}
{{- '<|im_start|>system\\n' }}
{%- if message.role == 'system' %}{{- message.content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and ' }}
{{- 'arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- elif not (loop.first and tools and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""ChatML with the tool format of Hermes and Qwen2.5; what `chat_template="chatml"` stands for."""

_NAMED = {"chatml": CHATML}

# Nothing a template looks for, strips or escapes.
_ACTION, _OBSERVATION = "TURNWISEACTION", "TURNWISEOBSERVATION"

_ACTIONS = (
    "four",
    " padded on both sides \n",
    "<think>\nTwo and two.\n</think>\n\nfour",
    '{"name": "search", "arguments": {"query": "x \\"y\\" {{z}}"}}',
    '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>',
    "naïve 世界 🙂 it's",
)
_OBSERVATIONS = (
    "found 3 pages",
    '\n\n {"results": []}  \n',
    "Straße 東京 🚀",
    "<information>\na < b & c\n</information>",
)
_TURNS = 4


class TemplateError(ValueError):
    """A chat template that token-by-token conversations cannot be built with."""


def _verbatim(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class _Affixes:
    """What a template writes around one turn; `head` begins with the end-of-turn token.

    `... prompt [lead action] head observation tail [lead action] head ...`
    """

    lead: str
    head: str
    tail: str
    edit: Callable[[str], str]

    def continuation(self, observation: str) -> str:
        return self.head + self.edit(observation) + self.tail


class Chat:
    """Turns messages into tokens, and an observation into the tokens that follow a sampled turn.

    Attributes:
        end_of_turn_id: the token that closes an assistant message.
        stop_token_ids: the end-of-turn token, and the tokenizer's end-of-sequence token if it is
            another one; for `Sampling.stop_token_ids`.
    """

    end_of_turn_id: int
    stop_token_ids: tuple[int, ...]

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        roles: Sequence[str] = ("user",),
    ) -> None:
        """Prove the template and keep what it writes between turns.

        Args:
            tokenizer: a Hugging Face tokenizer.
            chat_template: Jinja text, "chatml" for the built-in ChatML, or a name among the
                tokenizer's own templates. None: the tokenizer's template.
            tools: JSON schemas of the functions the policy may call, for the template.
            roles: the roles that observations will have, proven now; others when first used.

        Raises:
            TemplateError: there is no template, it is not prefix-preserving, it has no end-of-turn
                token, or it ignores the tools.
        """
        if chat_template is None and not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                "The tokenizer has no chat template. Name one with the argument chat_template: "
                'chat_template="chatml" is built in (the tokenizer must have its tokens '
                "<|im_start|> and <|im_end|>), and any Jinja template text will do."
            )
        self._tokenizer = tokenizer
        self._template = _NAMED.get(chat_template or "", chat_template)
        self._tools = list(tools) if tools else None
        self._control = _control_tokens(tokenizer)
        longest_first = sorted(self._control.values(), key=len, reverse=True)
        self._imitation = re.compile("|".join(map(re.escape, longest_first)))
        self._affixes: dict[str, _Affixes] = {}
        if self._tools:
            probe = [_message("user", "?")]
            if self._render(probe) == self._render(probe, tools=False):
                raise TemplateError(
                    "The chat template does not mention the tools it is given. Describe them in "
                    "a message instead of passing tools=, or pass a template that writes them."
                )
        if not roles:
            raise ValueError("roles must name at least one role that observations have")
        self.end_of_turn_id = self._end_of_turn(self._derive(roles[0]).head)
        for role in roles:
            self._affixes[role] = self._proven(role)
        eos = tokenizer.eos_token_id
        self.stop_token_ids = tuple(
            dict.fromkeys([self.end_of_turn_id, *([] if eos is None else [int(eos)])])
        )

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """The tokens before the first sampled turn: the messages and the generation prompt.

        Special tokens written out in the messages are read as special tokens, so the messages are
        to be trusted; observations need not be.

        Raises:
            ValueError: there are no messages, or the template refuses them.
        """
        if not messages:
            raise ValueError("opening needs at least one message")
        return self._encode(self._render(messages))

    def continuation(self, observation: str, *, closed: bool, role: str = "user") -> list[int]:
        """The tokens between a sampled turn and the next one.

        They close the assistant's message, hold the observation as a message of `role` and end
        with the generation prompt. What looks like a special token inside the observation is
        encoded as plain text, so that no observation can end its own message.

        Args:
            observation: what the environment answered.
            closed: the policy sampled the end-of-turn token itself (see `is_closed`).
            role: of the message.

        Raises:
            TemplateError: the template cannot be continued by this role.
        """
        affixes = self._affixes.get(role)
        if affixes is None:
            affixes = self._affixes[role] = self._proven(role)
        if self._imitation.search(observation):
            tokens = [
                *self._encode(affixes.head),
                *self._encode(affixes.edit(observation), split_special_tokens=True),
                *self._encode(affixes.tail),
            ]
        else:
            tokens = self._encode(affixes.continuation(observation))
        # The closing token is always encoded, so that what follows it is tokenised in its place.
        return tokens[1:] if closed else tokens

    def is_closed(self, action: Sequence[int]) -> bool:
        """Whether sampled ids end with the end-of-turn token."""
        return len(action) > 0 and int(action[-1]) == self.end_of_turn_id

    def decode(self, action: Sequence[int]) -> str:
        """The text of sampled ids, without the stop token they may end with."""
        ids = [int(token) for token in action]
        if ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _encode(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        return self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens
        )

    def _render(self, messages: Sequence[Message], *, tools: bool = True) -> str:
        """The conversation and the generation prompt as text."""
        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=self._tools if tools else None,
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateError(
                f"The chat template refuses a conversation of the roles {roles}: {error}. Use "
                f"other roles (such as instructions in the first user message instead of a system "
                f"message), or pass another template as chat_template=."
            ) from error

    def _proven(self, role: str) -> _Affixes:
        """The affixes for observations of `role`, proven on every probe conversation."""
        affixes = self._derive(role)
        if self._end_of_turn(affixes.head) != self.end_of_turn_id:
            raise TemplateError(
                f"The chat template closes an assistant message with {affixes.head!r} before a "
                f"{role!r} message, with another token than usual. Use another role."
            )
        systems: list[list[Message]] = [[]]
        try:
            self._render([_message("system", "Be brief."), _message("user", "?")])
            systems.append([_message("system", "Be brief.")])
        except TemplateError:
            pass  # A template without a system role is fine as long as nobody uses one.
        actions = [_ACTIONS[i:] + _ACTIONS[:i] for i in range(len(_ACTIONS))]
        for system, contents in itertools.product(systems, actions):
            conversation = [*system, _message("user", "What is 2 + 2?")]
            shorter = self._render(conversation)
            for turn in range(_TURNS):
                observation = _OBSERVATIONS[turn % len(_OBSERVATIONS)]
                action = contents[turn]
                conversation += [_message("assistant", action), _message(role, observation)]
                longer = self._render(conversation)
                rest = affixes.continuation(observation)
                if not longer.startswith(shorter):
                    _refuse("is not prefix-preserving", conversation, longer, shorter)
                # Sampled whitespace stays in the tokens whether or not a template would keep it.
                middle = longer[len(shorter) : len(longer) - len(rest)]
                if not longer.endswith(rest) or middle.strip() != action.strip():
                    built = shorter + affixes.lead + action + rest
                    _refuse("rewrites earlier turns", conversation, longer, built)
                shorter = longer
        return affixes

    def _derive(self, role: str) -> _Affixes:
        """What the template writes around a turn, read off a conversation of sentinels."""
        start = [_message("user", "?")]
        prompt = self._render(start)
        turn = [*start, _message("assistant", _ACTION)]
        text = self._render([*turn, _message(role, _OBSERVATION)])
        before, found_action, after = text.partition(_ACTION)
        head, found_observation, tail = after.partition(_OBSERVATION)
        if not (found_action and found_observation) or _ACTION in after or _OBSERVATION in tail:
            raise TemplateError(
                f"The chat template does not write an assistant message and the {role!r} message "
                f"after it once each, in order: {text!r}. Pass another one as chat_template=."
            )
        lead = before[len(prompt) :]
        if not before.startswith(prompt) or lead.strip():
            conversation = [*turn, _message(role, _OBSERVATION)]
            _refuse("does not begin assistant messages as it prompts", conversation, text, prompt)
        padded = f" \n{_OBSERVATION}\n "
        text = self._render([*turn, _message(role, padded)])
        for edit in (_verbatim, str.strip, str.lstrip, str.rstrip):
            affixes = _Affixes(lead, head, tail, edit)
            if text == before + _ACTION + affixes.continuation(padded):
                return affixes
        built = before + _ACTION + head + padded + tail
        _refuse("rewrites observations", [*turn, _message(role, padded)], text, built)

    def _end_of_turn(self, head: str) -> int:
        """The first token of what follows an assistant message."""
        tokens = self._encode(head)
        if not tokens or tokens[0] not in self._control:
            raise TemplateError(
                f"The chat template closes an assistant message with {head!r}, which does not "
                f"begin with a token of its own, so the policy could not end its turn. Add the "
                f"token with tokenizer.add_special_tokens (and resize the model's embeddings), or "
                f"pass another template as chat_template=."
            )
        return tokens[0]


def _control_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that text cannot spell: the tokenizer's special tokens, by id."""
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return {int(i): str(token) for i, token in named} | {
        int(i): token.content for i, token in added if token.special
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _refuse(fault: str, conversation: Sequence[Message], rendered: str, expected: str) -> NoReturn:
    """Raise the error that shows a conversation and where its rendering departs."""
    pairs = enumerate(itertools.zip_longest(rendered, expected))
    at = next((i for i, (a, b) in pairs if a != b), 0)
    around = slice(max(at - 40, 0), at + 40)
    shown = json.dumps([dict(message) for message in conversation], ensure_ascii=False)
    raise TemplateError(
        f"The chat template {fault}: sampled tokens would not stay where they are as the "
        f"conversation grows.\n"
        f"Conversation: {shown}\n"
        f"First difference at character {at}:\n"
        f"  rendered: {rendered[around]!r}\n"
        f"  expected: {expected[around]!r}\n"
        f"Pass a template that keeps earlier turns as they are, as chat_template= (such as "
        f'chat_template="chatml").'
    )
