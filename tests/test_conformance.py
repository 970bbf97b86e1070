"""The conformance suite finds what it says it finds."""

import random
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from turnwise.envs.conformance import CHECKS, ConformanceError, check_text_env
from turnwise.envs.task import Task
from turnwise.envs.text_env import Reply, TextEnv
from turnwise.rewards.verdict import Verdict

ROOT = Path(__file__).parents[1]


class Sums:
    """Task i asks for 1 + i."""

    size = 50

    def __getitem__(self, index: int) -> Task:
        return Task(f"sum-{index}", f"1 + {index} = ?", str(1 + index))


class GoodEnv(TextEnv):
    """Three tries to say a number."""

    def __init__(self) -> None:
        super().__init__(Sums(), max_turns=3)

    def begin(self, task: Task) -> str:
        self.state = {"tries": 0}
        return task.prompt

    def respond(self, action: str) -> Reply:
        assert self.task is not None
        self.state["tries"] += 1
        if action.strip() == self.task.reference:
            return Reply("", Verdict(1.0, "correct"))
        return Reply(f"No. Try {self.state['tries']}.", info={"tries": self.state["tries"]})

    def oracle(self) -> Iterator[str]:
        assert self.task is not None
        yield "a first try"
        yield self.task.reference

    def cheats(self) -> Mapping[str, list[str]]:
        return {"all at once": [" ".join(map(str, range(60)))]}

    def example_actions(self) -> tuple[str, ...]:
        return ("zero", "seven", "")


def test_a_good_environment_passes_every_check() -> None:
    assert len(check_text_env(GoodEnv())) == len(CHECKS)


class Forgetful(GoodEnv):
    """History survives reset()."""

    def begin(self, task: Task) -> str:
        self.count = getattr(self, "count", 0) + 1
        return f"{super().begin(task)} (episode {self.count})"


class GlobalSeeder(GoodEnv):
    """Seeds the world's generators."""

    def begin(self, task: Task) -> str:
        random.seed(0)
        np.random.seed(0)
        return super().begin(task)


class Raiser(GoodEnv):
    """Falls over on what is not ASCII."""

    def respond(self, action: str) -> Reply:
        action.encode("ascii")
        return super().respond(action)


class Leaker(GoodEnv):
    """Shows the reference."""

    def respond(self, action: str) -> Reply:
        assert self.task is not None
        return Reply("no", info={"reference": self.task.reference})


class NotJson(GoodEnv):
    """Info that no file can hold."""

    def respond(self, action: str) -> Reply:
        return Reply("no", info={"when": {1, 2}})


class Both(GoodEnv):
    """Terminated and truncated at once."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, terminated or truncated, info


class SharedState(GoodEnv):
    """State outside `self.state`, which a fork shares."""

    def begin(self, task: Task) -> str:
        self.shared = [0]
        return super().begin(task)

    def respond(self, action: str) -> Reply:
        self.shared[0] += 1
        return Reply(f"{self.shared[0]}")


class BadOracle(GoodEnv):
    """An oracle that does not know."""

    def oracle(self) -> Iterator[str]:
        yield "I do not know"
        yield "nor now"
        yield "nor ever"


class Cheated(GoodEnv):
    """Pays for the answer anywhere in the text."""

    def respond(self, action: str) -> Reply:
        assert self.task is not None
        if self.task.reference in action.split():
            return Reply("", Verdict(1.0, "correct"))
        return Reply("no")


class Generous(GoodEnv):
    """Pays for nonsense."""

    def respond(self, action: str) -> Reply:
        return Reply("fine", reward=0.1)


class Constant(GoodEnv):
    """Ignores its seed."""

    def _choose(self, wanted: Any) -> Task:
        return super()._choose(0 if wanted is None else wanted)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Forgetful, "differ|survived"),
        (GlobalSeeder, "global random generator"),
        (Raiser, "raised UnicodeEncodeError"),
        (Leaker, "reference answer"),
        (NotJson, "not JSON"),
        (Both, "Not exactly one"),
        (SharedState, "fork's future"),
        (BadOracle, "oracle got|does not finish"),
        (Cheated, "cheat 'all at once'"),
        (Generous, "was paid"),
        (Constant, "same task"),
    ],
)
def test_each_defect_is_found_and_named(broken: type[GoodEnv], said: str) -> None:
    with pytest.raises(ConformanceError, match=said):
        check_text_env(broken())


def test_an_environment_that_is_not_text_is_refused() -> None:
    with pytest.raises(ConformanceError, match="not Unicode"):
        check_text_env(gym.make("CartPole-v1"))  # type: ignore[arg-type]


@pytest.mark.repository
def test_the_example_of_an_own_environment_passes() -> None:
    runpy.run_path(str(ROOT / "examples" / "own_environment.py"))
    assert len(check_text_env(gym.make("hangman/Hangman-v0"), tasks=6)) == len(CHECKS)
