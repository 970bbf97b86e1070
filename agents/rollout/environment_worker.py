"""Environments at work: each stepped inline or in a thread of its own, answers in one queue."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

logger = logging.getLogger(__name__)

TIMEOUT_GRAIN_S = 1.0
"""How late a hanging environment may be noticed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an environment said to a reset (`step` is None) or a step.

    Attributes:
        key: of the episode.
        observation: the new text.
        info: as the environment gave it.
        step: (reward, terminated, truncated), or None after a reset.
        probe: (before, answer) of the reference, after a reset, where the environment says.
        env_id: after a reset.
        error: what was raised; the rest is then empty.
    """

    key: int
    observation: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    step: tuple[float, bool, bool] | None = None
    probe: tuple[str, str] | None = None
    env_id: str = ""
    error: str | None = None


Job = Callable[[gym.Env[str, str], int], Answer]


class EnvironmentWorkers:
    """Environments by episode key. Not thread-safe: one loop owns it."""

    def __init__(
        self, make_env: Callable[[], gym.Env[str, str]], step_timeout_s: float | None
    ) -> None:
        """Args: make_env: makes another one; step_timeout_s: None waits for ever."""
        self._make_env = make_env
        self._timeout_s = step_timeout_s
        self._answers: queue.SimpleQueue[tuple[_Worker, Answer]] = queue.SimpleQueue()
        self._busy: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        self._inline: bool | None = None

    def reset(self, key: int, seed: int, options: dict[str, Any]) -> None:
        """Begin an episode under `key`."""
        self._busy[key] = worker = self._idle.pop() if self._idle else self._new_worker()
        worker.do(key, lambda env, key: _reset(env, key, seed, options))

    def step(self, key: int, action: str) -> None:
        """Take a step of the episode `key`."""
        self._busy[key].do(key, lambda env, key: _step(env, key, action))

    def collect(self, *, block: bool) -> list[Answer]:
        """Answers that have come, and errors for environments that hang; may be empty."""
        answers: list[Answer] = []
        if block and self._answers.empty() and self._busy:
            try:
                self._take(self._answers.get(timeout=TIMEOUT_GRAIN_S), answers)
            except queue.Empty:
                pass  # nothing yet: look for hanging ones below
        while not self._answers.empty():
            self._take(self._answers.get(), answers)
        if self._timeout_s is not None and not self._inline:
            answers += self._overdue(self._timeout_s)
        return answers

    def finish(self, key: int) -> None:
        """The episode is over: its environment serves the next one."""
        self._idle.append(self._busy.pop(key))

    def discard(self, key: int) -> None:
        """The episode failed: its environment is not used again."""
        worker = self._busy.pop(key, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """Close all environments."""
        for worker in [*self._idle, *self._busy.values()]:
            worker.close()
        self._idle.clear()
        self._busy.clear()

    def _new_worker(self) -> _Worker:
        if self._inline is None:
            first = self._make_env()
            self._inline = bool(first.metadata.get("inline", False))
            if self._inline:
                return _InlineWorker(self._answers, lambda: first)
            first.close()  # an environment lives in one thread from its making on
        kind = _InlineWorker if self._inline else _ThreadWorker
        return kind(self._answers, self._make_env)

    def _take(self, arrival: tuple[_Worker, Answer], answers: list[Answer]) -> None:
        worker, answer = arrival
        # A discarded environment may still answer: nobody waits for that.
        if self._busy.get(answer.key) is worker:
            worker.since = None
            answers.append(answer)

    def _overdue(self, timeout_s: float) -> list[Answer]:
        now = time.monotonic()
        late = []
        for key, worker in self._busy.items():
            if worker.since is not None and now - worker.since > timeout_s:
                worker.since = None
                late.append(Answer(key, error=f"no answer within {timeout_s:g} s"))
        return late


class _Worker:
    """One environment. `since`: when the job under way began (monotonic s), None when idle."""

    def __init__(
        self,
        answers: queue.SimpleQueue[tuple[_Worker, Answer]],
        make_env: Callable[[], gym.Env[str, str]],
    ) -> None:
        self.answers = answers
        self.make_env = make_env
        self.env: gym.Env[str, str] | None = None
        self.since: float | None = None

    def do(self, key: int, job: Job) -> None:
        """Run a job; its answer goes to the queue."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the environment."""
        raise NotImplementedError

    def _run(self, key: int, job: Job) -> None:
        try:
            if self.env is None:
                self.env = self.make_env()
            answer = job(self.env, key)
        # Whatever an environment raises is that episode's failure, counted by the scheduler.
        except Exception as error:
            answer = Answer(key, error=f"{type(error).__name__}: {error}")
        self.answers.put((self, answer))

    def _close_env(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            try:
                env.close()
            except Exception:  # it is not used again: worth a log, not the training
                logger.exception("An environment failed to close.")


class _InlineWorker(_Worker):
    """Works in the caller's own thread."""

    def do(self, key: int, job: Job) -> None:
        self._run(key, job)

    def close(self) -> None:
        self._close_env()


class _ThreadWorker(_Worker):
    """Works in a daemon thread; one that hangs is left behind."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._jobs: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="turnwise-env", daemon=True).start()

    def do(self, key: int, job: Job) -> None:
        self.since = time.monotonic()
        self._jobs.put((key, job))

    def close(self) -> None:
        self._jobs.put(None)

    def _loop(self) -> None:
        while (item := self._jobs.get()) is not None:
            self._run(*item)
        self._close_env()


def _reset(env: gym.Env[str, str], key: int, seed: int, options: dict[str, Any]) -> Answer:
    observation, info = env.reset(seed=seed, options=options)
    state_reference = getattr(env.unwrapped, "probe", None)
    probe = state_reference() if state_reference is not None else None
    env_id = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    return Answer(key, observation, info, None, None if probe is None else tuple(probe), env_id)


def _step(env: gym.Env[str, str], key: int, action: str) -> Answer:
    observation, reward, terminated, truncated, info = env.step(action)
    return Answer(key, observation, info, (float(reward), bool(terminated), bool(truncated)))
