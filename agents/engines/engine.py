"""Engine: the contract between rollouts and whatever samples tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample.

    Attributes:
        max_new_tokens: per request; an engine lowers it where its context would overflow.
        temperature: 0 is greedy.
        top_p: nucleus mass, 1 is off. Training needs the whole distribution: leave it at 1 there.
        top_k: 0 is off. Likewise.
        stop_token_ids: a sampled stop token ends the completion and is its last token.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, is {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], is {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, is {self.top_k}")


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to sample.

    Attributes:
        id: comes back with the completion.
        tokens: the whole context so far.
        sampling: how to sample.
        seed: the completion depends on the seed, the context and the weights alone, not on
            what else is in the batch (up to floating point).
        session: requests of one session extend one another token by token; an engine may keep
            the key-value cache between them. None: nothing is kept.
        probe: tokens whose log-probabilities after `tokens` are wanted; they do not enter the
            context.
    """

    id: Hashable
    tokens: Sequence[int]
    sampling: Sampling
    seed: int = 0
    session: Hashable = None
    probe: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled for a request.

    Attributes:
        id: the request's.
        tokens: int32[n]; n is 0 where the context left no room.
        logprobs: float32[n], of each token under the distribution it was sampled from before
            top-p and top-k (temperature applied; temperature 0 reports those of temperature 1).
        finish: "stop" (a stop token) or "length" (a budget).
        probe_logprobs: float32[len(probe)], at temperature 1.
        weights_version: of the weights that sampled it.
    """

    id: Hashable
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish: Finish
    probe_logprobs: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    weights_version: int = 0


class Engine(Protocol):
    """Samples and scores tokens. Completions come back as each finishes, out of order."""

    tokenizer: Any
    max_length: int

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests. ValueError for an empty context or two requests of one session."""

    def poll(self) -> list[Completion]:
        """Work a little; what has finished since. An empty list while work remains or idle."""
        ...

    def release(self, session: Hashable) -> None:
        """Forget a session's cache (no error if there is none)."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Submit, then yield every completion as it finishes."""
        ...

    def score(
        self, token_ids: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.float32]]:
        """Teacher-forced log-probabilities (temperature 1) of each sequence's span [start, end)."""
        ...

    def load_weights(self, state: Mapping[str, Any] | None, version: int) -> None:
        """Take new weights (None: the model's own parameters changed in place)."""
