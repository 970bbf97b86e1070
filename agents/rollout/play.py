"""Play: an episode under way, growing token by token into a trajectory."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Completion, Request, Sampling
from turnwise.agents.rollout.environment_worker import Answer
from turnwise.agents.trajectory import Status, Trajectory, Turn
from turnwise.rewards.credit.information_gain import information_gain
from turnwise.rewards.verdict import Verdict

if TYPE_CHECKING:
    from turnwise.agents.rollout.scheduler import Episode

_HISTORY = frozenset({"messages", "tools", "turn", "max_turns", "task_id", "verdict"})
"""What `info` repeats of the episode itself, and a turn need not keep."""


class Play:
    """The growing record of one episode. Tokens are appended, never decoded and re-encoded."""

    def __init__(self, episode: Episode, attempt: int) -> None:
        """Args: episode: what is played; attempt: 1, or 2 after a failure."""
        self.episode = episode
        self.attempt = attempt
        self.env_id = ""
        self.task_id = ""
        self.prompt = ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.turns: list[Turn] = []
        self.version = 0
        self._spans: list[tuple[int, int]] = []
        self._text = ""
        self._closed = False
        self._probe: list[int] = []
        self._gold_from = 0
        self._gold: list[float] = []

    def open(self, answer: Answer, chat: Chat, probe_tokenizer: Any) -> None:
        """Take the first observation; with a tokenizer, also how the reference is stated."""
        self.env_id = answer.env_id
        self.task_id = str(answer.info.get("task_id", ""))
        self.prompt = answer.observation
        messages = answer.info.get("messages") or [{"role": "user", "content": self.prompt}]
        self._append(chat.opening(messages))
        if probe_tokenizer is not None:
            if answer.probe is None:
                raise ValueError(
                    f"{self.env_id} does not say how its reference answer is stated, which "
                    "information gain asks for: override `probe()`, or choose another credit."
                )
            before, gold = (
                probe_tokenizer.encode(text, add_special_tokens=False) for text in answer.probe
            )
            self._probe, self._gold_from = before + gold, len(before)

    def request(self, key: Hashable, sampling: Sampling, stop_token_ids: Any) -> Request:
        """The next turn to sample."""
        stops = tuple(dict.fromkeys((*sampling.stop_token_ids, *stop_token_ids)))
        return Request(
            id=key,
            tokens=tuple(self.tokens),
            sampling=Sampling(
                sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k, stops
            ),
            # Far apart for neighbouring turns and episodes; generators hash their seeds.
            seed=(self.episode.seed + 0x9E3779B97F4A7C15 * (len(self.turns) + 1)) % (1 << 63),
            session=key,
            probe=self._probe,
        )

    def act(self, completion: Completion, text: str) -> str:
        """Append what the policy sampled; returns the action for the environment."""
        start = len(self.tokens)
        self._append(completion.tokens.tolist(), completion.logprobs.tolist())
        self._spans.append((start, len(self.tokens)))
        self._text = text
        self._closed = completion.finish == "stop"
        self.version = completion.weights_version
        if self._probe:
            self._gold.append(float(completion.probe_logprobs[self._gold_from :].mean()))
        return text

    def observe(self, answer: Answer, chat: Chat) -> Trajectory | None:
        """Append the environment's answer; the whole trajectory if it ended the episode."""
        assert answer.step is not None  # a reset opens
        reward, terminated, truncated = answer.step
        start = len(self.tokens)
        ended = terminated or truncated
        if not ended:
            self._append(chat.continuation(answer.observation, closed=self._closed))
        self.turns.append(
            Turn(
                index=len(self.turns),
                action_span=self._spans[-1],
                observation_span=(start, len(self.tokens)),
                text=self._text,
                observation=answer.observation,
                reward=reward,
                info={k: v for k, v in answer.info.items() if k not in _HISTORY},
            )
        )
        if not ended:
            return None
        verdict = answer.info.get("verdict")
        return self._trajectory(
            "terminated" if terminated else "truncated",
            None if verdict is None else Verdict.from_json(verdict),
        )

    def out_of_context(self) -> Trajectory:
        """The trajectory of an episode for which the engine had no room left."""
        reason = {"reason": f"context full after {len(self.tokens)} tokens"}
        return self._trajectory("truncated", Verdict(0.0, "unparsable", reason))

    def fail(self, error: str) -> Trajectory:
        """The trajectory of an episode whose infrastructure failed."""
        del self.tokens[self.turns[-1].observation_span[1] if self.turns else 0 :]
        return self._trajectory("failed", None, error)

    def _show_gains(self, gold: NDArray[np.float32]) -> None:
        """Note on each turn but the last what it added to the probability of the reference."""
        gains = information_gain(gold[None], [len(self.turns)])[0].tolist()
        for turn, gain in zip(self.turns[:-1], gains, strict=False):
            self.turns[turn.index] = replace(turn, scores={**turn.scores, "information_gain": gain})

    def _append(self, tokens: list[int], logprobs: list[float] | None = None) -> None:
        self.tokens += tokens
        self.logprobs += logprobs or [0.0] * len(tokens)

    def _trajectory(self, status: Status, verdict: Verdict | None, error: str = "") -> Trajectory:
        length, turns = len(self.tokens), len(self.turns)
        mask = np.zeros(length, np.bool_)
        for turn in self.turns:
            mask[slice(*turn.action_span)] = True
        gold = None
        if self._probe:
            gold = np.full(turns + 1, np.nan, np.float32)
            gold[:turns] = self._gold[:turns]
            self._show_gains(gold)
        return Trajectory(
            env_id=self.env_id,
            task_id=self.task_id,
            group=self.episode.group,
            tokens=np.array(self.tokens, np.int32),
            logprobs=np.array(self.logprobs[:length], np.float32),
            action_mask=mask,
            turns=tuple(self.turns),
            prompt=self.prompt,
            verdict=verdict,
            status=status,
            weights_version=self.version,
            gold_logprob=gold,
            error=error,
        )
