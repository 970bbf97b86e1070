"""Trajectory and Turn: the token-level record of one episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from turnwise.rewards.verdict import Verdict

Status = Literal["terminated", "truncated", "failed"]
"""How an episode ended: the task decided, a budget ran out, or the infrastructure failed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One action of the policy and the environment's answer to it.

    Spans are half-open ranges `[start, end)` of token positions in the trajectory.

    Attributes:
        index: 0, 1, ... within the trajectory.
        action_span: the tokens the policy sampled.
        observation_span: the tokens that followed (empty after the last turn).
        text: the action as the environment saw it.
        observation: the environment's answer as text; after the last turn it is not in `tokens`.
        reward: what `env.step` paid.
        scores: named process scores, such as `{"information_gain": 0.2}`.
        info: JSON-able facts from the environment.
    """

    index: int
    action_span: tuple[int, int]
    observation_span: tuple[int, int]
    text: str
    observation: str
    reward: float
    scores: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode, token by token. T tokens, K turns.

    Attributes:
        env_id: the environment's id.
        task_id: which problem it was.
        group: episodes of one group share a task and are compared with one another.
        tokens: int32[T], prompt, actions and observations in order; never decoded and re-encoded.
        logprobs: float32[T], of the sampled tokens under the policy that sampled them; 0 elsewhere.
        action_mask: bool[T], True where the policy sampled the token.
        turns: the K turns.
        prompt: the first observation, as text.
        verdict: the judgement, or None where the environment gives none.
        status: how it ended; `failed` episodes enter neither the loss nor a baseline.
        weights_version: of the policy that sampled its last turn.
        gold_logprob: float32[K + 1] or None: mean log-probability of the reference answer, asked
            for before turn 0, 1, ...; NaN where it was not asked (after the last turn).
        error: what failed, for `failed` episodes.
    """

    env_id: str
    task_id: str
    group: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    action_mask: NDArray[np.bool_]
    turns: tuple[Turn, ...]
    prompt: str
    verdict: Verdict | None
    status: Status
    weights_version: int = 0
    gold_logprob: NDArray[np.float32] | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it may be learned from."""
        return self.status != "failed" and (self.verdict is None or self.verdict.ok)

    @property
    def outcome(self) -> float:
        """What the finished episode was worth: the verdict's score, else the last reward."""
        if self.verdict is not None:
            return self.verdict.score
        return self.turns[-1].reward if self.turns else 0.0

    @property
    def success(self) -> bool:
        """Whether the task was solved: by the verdict, else by an outcome of 1."""
        if self.verdict is not None:
            return self.verdict.status == "correct"
        return self.outcome >= 1.0

    @property
    def turn_rewards(self) -> NDArray[np.float32]:
        """float32[K], what each turn was paid beside the outcome."""
        rewards = np.array([t.reward for t in self.turns], np.float32)
        if len(rewards):
            rewards[-1] -= self.outcome
        return rewards

    @property
    def turn_of_token(self) -> NDArray[np.int32]:
        """int32[T], the turn each sampled token belongs to; -1 off actions."""
        turn = np.full(len(self.tokens), -1, np.int32)
        for t in self.turns:
            turn[t.action_span[0] : t.action_span[1]] = t.index
        return turn
