"""Scheduler: the one loop that steps engines and environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Engine, Sampling
from turnwise.agents.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode to play.

    Attributes:
        group: episodes of one group share a task and are compared with one another.
        member: 0, 1, ... within the group.
        seed: of the episode's sampling; also `env.reset(seed=...)` where `options` name no task.
        options: for `env.reset(options=...)`, such as `{"task": 7}`.
    """

    group: int
    member: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)


class Scheduler:
    """Plays episodes: environments step while other episodes still generate."""

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        make_env: Callable[[], gym.Env[str, str]],
        *,
        sampling: Sampling,
        probe: bool = False,
        concurrency: int = 64,
        env_threads: int = 16,
        step_timeout_s: float | None = 120.0,
    ) -> None:
        """...

        Args:
            engine: samples.
            chat: messages to tokens.
            make_env: called when another environment is needed; environments are reused.
            sampling: how to sample a turn.
            probe: ask for the reference answer's log-probability before every turn.
            concurrency: episodes in flight.
            env_threads: for environments that do not declare `metadata["inline"]`.
            step_timeout_s: an environment that takes longer has failed.
        """

    def run(self, episodes: Iterable[Episode]) -> Iterator[Trajectory]:
        """Play episodes; trajectories come back as each ends, failed ones too."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the environments."""
