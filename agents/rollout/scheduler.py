"""Scheduler: the one loop that steps engines and environments."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Completion, Engine, Sampling
from turnwise.agents.rollout.environment_worker import Answer, EnvironmentWorkers
from turnwise.agents.rollout.play import Play
from turnwise.agents.trajectory import Trajectory

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""An episode whose infrastructure failed is played once more with a fresh environment."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode to play.

    Attributes:
        group: episodes of one group share a task and are compared with one another.
        member: 0, 1, ... within the group.
        seed: of the episode's sampling; members of a group differ in it.
        env_seed: for `env.reset(seed=...)`; members of a group share it. None takes `seed`.
        options: for `env.reset(options=...)`, such as `{"task": 7}`.
    """

    group: int
    member: int
    seed: int
    env_seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Counts:
    """What has happened since the scheduler was made."""

    episodes: int = 0
    retried: int = 0
    failed: int = 0
    turns: int = 0
    sampled_tokens: int = 0
    waiting_s: float = 0.0
    """Time with nothing to generate: every episode in flight waited for its environment."""


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
        step_timeout_s: float | None = 120.0,
    ) -> None:
        """Nothing starts before `run`.

        Args:
            engine: samples.
            chat: messages to tokens.
            make_env: called when another environment is needed; environments are reused.
                Those with `metadata["inline"]` are stepped in the loop itself, all others in a
                thread each.
            sampling: how to sample a turn; the chat's stop tokens are added.
            probe: ask for the reference answer's log-probability before every turn.
            concurrency: episodes in flight.
            step_timeout_s: a threaded environment that takes longer has failed.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self.engine = engine
        self.chat = chat
        self.sampling = sampling
        self.probe = probe
        self.concurrency = concurrency
        self.counts = Counts()
        self._workers = EnvironmentWorkers(make_env, step_timeout_s)
        self._plays: dict[int, Play] = {}
        self._asked: set[int] = set()
        self._next_key = 0

    def run(self, episodes: Iterable[Episode]) -> Iterator[Trajectory]:
        """Play episodes; trajectories come back as each ends, failed ones too.

        An environment that raises or hangs costs its own episode: that is played again from the
        start with a fresh environment and, should it fail again, comes back as `failed`.
        """
        waiting = iter(episodes)
        exhausted = False
        while True:
            while not exhausted and len(self._plays) < self.concurrency:
                episode = next(waiting, None)
                if episode is None:
                    exhausted = True
                    break
                self._start(Play(episode, attempt=1))
            if not self._plays:
                return
            if self._asked:
                for completion in self.engine.poll():
                    yield from self._acted(completion)
            begun = time.perf_counter()
            answers = self._workers.collect(block=not self._asked)
            if not self._asked:
                self.counts.waiting_s += time.perf_counter() - begun
            for answer in answers:
                ended = self._answered(answer)
                if ended is not None:
                    yield ended

    def close(self) -> None:
        """Close the environments."""
        for key in list(self._plays):
            self.engine.release(key)
            self._workers.discard(key)
        self._plays.clear()
        self._asked.clear()
        self._workers.close()

    # ------------------------------------------------------------------ one event each

    def _start(self, play: Play) -> None:
        key = self._next_key
        self._next_key += 1
        self._plays[key] = play
        episode = play.episode
        seed = episode.seed if episode.env_seed is None else episode.env_seed
        self._workers.reset(key, seed, dict(episode.options))

    def _acted(self, completion: Completion) -> Iterator[Trajectory]:
        """The policy has spoken: the environment's turn."""
        key = completion.id
        if key not in self._asked:
            return  # asked for by a run that was abandoned
        assert isinstance(key, int)  # the keys given out above
        self._asked.remove(key)
        play = self._plays[key]
        if not len(completion.tokens):
            yield self._end(key, play.out_of_context())
            return
        self.counts.turns += 1
        self.counts.sampled_tokens += len(completion.tokens)
        action = play.act(completion, self.chat.decode(completion.tokens.tolist()))
        self._workers.step(key, action)

    def _answered(self, answer: Answer) -> Trajectory | None:
        """The environment has answered: the trajectory if it ended, else the policy's turn."""
        key = answer.key
        play = self._plays[key]
        if answer.error is not None:
            return self._failed(key, play, answer.error)
        if answer.step is None:
            play.open(answer, self.chat, self.engine.tokenizer if self.probe else None)
        else:
            ended = play.observe(answer, self.chat)
            if ended is not None and ended.verdict is not None and not ended.verdict.ok:
                error = f"verdict {ended.verdict.status}: {dict(ended.verdict.detail)}"
                return self._failed(key, play, error)
            if ended is not None:
                return self._end(key, ended)
        self.engine.submit([play.request(key, self.sampling, self.chat.stop_token_ids)])
        self._asked.add(key)
        return None

    def _end(self, key: int, trajectory: Trajectory) -> Trajectory:
        del self._plays[key]
        self.engine.release(key)
        self._workers.finish(key)
        self.counts.episodes += 1
        return trajectory

    def _failed(self, key: int, play: Play, error: str) -> Trajectory | None:
        del self._plays[key]
        self.engine.release(key)
        self._workers.discard(key)
        if play.attempt < ATTEMPTS:
            logger.warning("Episode of %s failed, trying again: %s", play.task_id, error)
            self.counts.retried += 1
            self._start(Play(play.episode, attempt=play.attempt + 1))
            return None
        logger.warning("Episode of %s failed again and is dropped: %s", play.task_id, error)
        self.counts.failed += 1
        return play.fail(error)
