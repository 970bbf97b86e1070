"""TextEnv: a Gymnasium environment whose observations and actions are text."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import gymnasium as gym

from turnwise.envs.spaces import Unicode
from turnwise.envs.task import Task, TaskSource
from turnwise.envs.tools import Tool
from turnwise.rewards.verdict import Verdict

Self = TypeVar("Self", bound="TextEnv")

UNLIMITED = 1 << 31
"""Indices drawn from a source without an end lie below this."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment says to one action.

    Attributes:
        text: the new observation.
        verdict: given once the task is decided: it ends the episode and its score is paid.
        reward: paid on top of it: a process reward.
        info: JSON-able facts about the turn.
    """

    text: str
    verdict: Verdict | None = None
    reward: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)


class Probe(NamedTuple):
    """The action that states the reference answer: what comes before it, and the answer."""

    before: str
    answer: str


class TextEnv(gym.Env[str, str]):
    """Multi-turn text episodes over a source of tasks.

    Override `begin` and `respond`, keep everything that changes during an episode in `self.state`
    (any value that pickles), and draw randomness from `self.np_random` only. Budgets, history,
    `info`, snapshots and rendering are owned here.

    Observation: the new text only, a `str`; the history is in `info["messages"]`.
    Action: the raw text of the assistant's turn, a `str`.
    Reward: a turn's process reward, plus the verdict's score when the episode ends.
    Termination: the task is decided (`terminated`), or `max_turns` ran out (`truncated`).

    `reset(options={"task": 7})` picks task 7 (or takes a `Task`); otherwise the seed draws one.
    `info` holds `task_id`, `turn`, `messages`, `tools` (JSON schemas, at reset) and, at the end,
    `verdict` and `success`.
    """

    # `inline`: a step is so quick (well under a millisecond) that a thread would cost more.
    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi"],
        "render_fps": 1,
        "inline": False,
    }
    tools: Sequence[Tool] = ()

    def __init__(
        self, tasks: TaskSource, *, max_turns: int = 8, render_mode: str | None = None
    ) -> None:
        """Args: tasks: the problems; max_turns: the budget; render_mode: None or "ansi"."""
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, not {max_turns}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            known = self.metadata["render_modes"]
            raise ValueError(f"render_mode must be None or one of {known}, not {render_mode!r}")
        self.observation_space = Unicode()
        self.action_space = Unicode(examples=self.example_actions())
        self.tasks = tasks
        self.max_turns = max_turns
        self.render_mode = render_mode
        self.task: Task | None = None
        self.state: Any = None
        self._messages: list[dict[str, str]] = []
        self._turn = 0
        self._over = True

    # ------------------------------------------------------------------ override these

    def begin(self, task: Task) -> str:
        """Set `self.state` for a new episode and return the first observation."""
        raise NotImplementedError

    def respond(self, action: str) -> Reply:
        """Answer one action. A bad action is a reply that says what was wrong, not an error."""
        raise NotImplementedError

    def out_of_turns(self) -> Verdict:
        """The verdict of an episode whose budget ran out before it was decided."""
        return Verdict(0.0, "unparsable", {"reason": f"undecided after {self.max_turns} turns"})

    def oracle(self) -> Iterator[str]:
        """Actions that solve the current task, one per step; it may look at the state between."""
        raise NotImplementedError

    def cheats(self) -> Mapping[str, Iterable[str]]:
        """Reward hacks by name, each an iterable of actions that must score 0 on this task."""
        return {}

    def probe(self) -> Probe | None:
        """How the reference answer would be stated, for information gain; None: not defined."""
        return None

    def example_actions(self) -> tuple[str, ...]:
        """Actions that `action_space.sample()` draws from."""
        return ("", *(f"<{t.name}> {t.argument} </{t.name}>" for t in self.tools))

    # ------------------------------------------------------------------ Gymnasium

    @property
    def num_tasks(self) -> int | None:
        """How many tasks there are; None is unlimited."""
        return self.tasks.size

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode; `options={"task": index or Task}` says which."""
        super().reset(seed=seed)
        self.task = self._choose((options or {}).get("task"))
        self._turn, self._over = 0, False
        observation = self.begin(self.task)
        self._messages = [{"role": "user", "content": observation}]
        info = self._info()
        info["tools"] = [t.schema() for t in self.tools]
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the assistant's turn."""
        if self._over:
            raise gym.error.ResetNeeded("The episode is over: call reset() before step().")
        if not isinstance(action, str):
            raise gym.error.InvalidAction(f"An action is a str, not {type(action).__name__}.")
        self._turn += 1
        reply = self.respond(action)
        terminated = reply.verdict is not None
        truncated = not terminated and self._turn >= self.max_turns
        verdict = self.out_of_turns() if truncated else reply.verdict
        self._over = terminated or truncated
        self._messages.append({"role": "assistant", "content": action})
        self._messages.append({"role": "user", "content": reply.text})
        info = self._info()
        info.update(reply.info)
        reward = float(reply.reward)
        if verdict is not None:
            reward += verdict.score
            info["verdict"] = verdict.to_json()
            info["success"] = verdict.status == "correct"
        return reply.text, reward, terminated, truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        """The episode so far as text, with `render_mode="ansi"`."""
        if self.render_mode is None:
            return None
        return "\n".join(f"[{m['role']}] {m['content']}" for m in self._messages)

    # ------------------------------------------------------------------ beyond Gymnasium

    def snapshot(self) -> bytes:
        """The episode as bytes; `restore` on an equal environment continues it identically."""
        episode = (self.task, self.state, self._messages, self._turn, self._over)
        return pickle.dumps((episode, self._np_random, self._np_random_seed))

    def restore(self, snapshot: bytes) -> None:
        """Go back to where `snapshot` was taken. Only for bytes of your own making (pickle)."""
        episode, self._np_random, self._np_random_seed = pickle.loads(snapshot)
        self.task, self.state, self._messages, self._turn, self._over = episode

    def fork(self: Self) -> Self:
        """A second environment at the same point, with the same future for the same actions."""
        twin = copy.copy(self)
        twin.restore(self.snapshot())
        return twin

    # ------------------------------------------------------------------ machinery

    def _choose(self, wanted: Any) -> Task:
        size = self.tasks.size
        if isinstance(wanted, Task):
            return wanted
        if wanted is None:
            return self.tasks[int(self.np_random.integers(UNLIMITED if size is None else size))]
        if isinstance(wanted, bool) or not hasattr(wanted, "__index__"):
            raise ValueError(f'options["task"] must be an index or a Task, not {wanted!r}')
        index = wanted.__index__()
        if index < 0 or (size is not None and index >= size):
            raise ValueError(f'options["task"] is {index}; there are {size or "unlimited"} tasks')
        return self.tasks[index]

    def _info(self) -> dict[str, Any]:
        assert self.task is not None  # reset() has set it
        return {
            "task_id": self.task.id,
            "turn": self._turn,
            "max_turns": self.max_turns,
            "messages": list(self._messages),
        }
