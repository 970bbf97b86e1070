"""An environment of your own: a word is guessed letter by letter, then trained like any other.

Run `python examples/own_environment.py` to check it. Installed as a module named `hangman`, it is
`gymnasium.make("hangman:hangman/Hangman-v0")`, and
`turnwise train --env hangman:hangman/Hangman-v0 --credit turn_return` trains an agent in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import gymnasium as gym

from turnwise.envs.conformance import check_text_env
from turnwise.envs.task import Task
from turnwise.envs.text_env import Probe, Reply, TextEnv
from turnwise.envs.tools import Tool, ToolError, parse_call
from turnwise.rewards.verdict import Verdict

WORDS = ("turn", "credit", "rollout", "policy", "reward", "advantage")


class Words:
    """Task i is to find word i."""

    size = len(WORDS)

    def __getitem__(self, index: int) -> Task:
        """The word is the reference: the policy never sees it."""
        return Task(f"word-{index}", f"A word of {len(WORDS[index])} letters.", WORDS[index])


class HangmanEnv(TextEnv):
    """`<letter> e </letter>` asks for a letter, `<word> reward </word>` ends the episode."""

    metadata = {**TextEnv.metadata, "inline": True}  # noqa: RUF012
    tools = (
        Tool("letter", "Ask where a letter stands.", "letter"),
        Tool("word", "Say the word.", "word"),
    )

    def __init__(self, max_turns: int = 12, render_mode: str | None = None) -> None:
        """Args: max_turns: letters and the word together; render_mode: None or "ansi"."""
        super().__init__(Words(), max_turns=max_turns, render_mode=render_mode)

    def begin(self, task: Task) -> str:
        """The state is the set of letters asked for."""
        self.state = frozenset[str]()
        return f"{task.prompt} Ask <letter> x </letter> or say <word> ... </word>."

    def respond(self, action: str) -> Reply:
        """Show the letters found; pay a tenth for each new one."""
        assert self.task is not None
        word, call = self.task.reference, parse_call(action, self.tools)
        if isinstance(call, ToolError):
            return Reply(call.message)
        if call.name == "word":
            right = call.argument.lower() == word
            return Reply("", Verdict(float(right), "correct" if right else "wrong"))
        new = call.argument in word and len(call.argument) == 1 and call.argument not in self.state
        self.state |= {call.argument}
        shown = " ".join(c if c in self.state else "_" for c in word)
        return Reply(shown, reward=0.1 if new else 0.0)

    def oracle(self) -> Iterator[str]:
        """Ask for one letter, then say the word."""
        assert self.task is not None
        yield f"<letter> {self.task.reference[0]} </letter>"
        yield f"<word> {self.task.reference} </word>"

    def cheats(self) -> Mapping[str, list[str]]:
        """What must not be paid."""
        return {
            "every word at once": [f"<word> {' '.join(WORDS)} </word>"],
            "two words": ["".join(f"<word> {w} </word>" for w in WORDS)] * self.max_turns,
        }

    def probe(self) -> Probe:
        """Lets information gain be used as credit."""
        assert self.task is not None
        return Probe("<word>", f" {self.task.reference}")


gym.register(id="hangman/Hangman-v0", entry_point=HangmanEnv)

if __name__ == "__main__":
    print("\n".join(check_text_env(gym.make("hangman/Hangman-v0"))))
