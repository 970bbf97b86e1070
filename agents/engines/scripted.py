"""ScriptedEngine: completions written by a function, for tests and oracles."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnwise.agents.engines.engine import Completion, Finish, Request

Policy = Callable[[str, Hashable], "str | Sequence[int]"]
"""(the context as text, the request's id) to the completion, as text or as tokens."""

ProbeLogprobs = Callable[[str, Sequence[int]], Sequence[float]]
"""(the context as text, the probed tokens) to their log-probabilities."""


class ScriptedEngine:
    """Says what a policy function tells it to, with the certainty of log-probability 0.

    A completion given as text is closed with the request's first stop token, as a model that has
    finished its turn would close it; one given as tokens ends at its first stop token, if any.
    Either is cut to the request's budget.

    Attributes:
        tokenizer: encodes and decodes.
        max_length: longest context with its completion.
        weights_version: as `load_weights` last said.
    """

    def __init__(
        self,
        tokenizer: Any,
        policy: Policy,
        *,
        probe_logprobs: ProbeLogprobs | None = None,
        max_length: int = sys.maxsize,
        per_poll: int = 1,
    ) -> None:
        """Nothing runs before a request is polled.

        Args:
            tokenizer: anything with `encode(text, add_special_tokens=False)` and `decode(ids)`.
            policy: writes the completions.
            probe_logprobs: answers probes; None: 0 for every token.
            max_length: as of a model.
            per_poll: completions that one poll returns, at most.
        """
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.weights_version = 0
        self._policy = policy
        self._probe_logprobs = probe_logprobs
        self._per_poll = per_poll
        self._queue: deque[Request] = deque()
        self._sessions: set[Hashable] = set()

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; see `Engine.submit`.

        Raises:
            ValueError: an empty context, or two requests of one session in flight.
        """
        new, sessions = list(requests), set(self._sessions)
        for request in new:
            if not len(request.tokens):
                raise ValueError(f"Request {request.id!r} has an empty context.")
            if request.session is not None:
                if request.session in sessions:
                    raise ValueError(
                        f"Session {request.session!r} has a request in flight (this one is "
                        f"{request.id!r}): submit its next turn after its completion."
                    )
                sessions.add(request.session)
        self._sessions = sessions
        self._queue.extend(new)

    def poll(self) -> list[Completion]:
        """Complete the oldest requests."""
        count = min(self._per_poll, len(self._queue))
        return [self._complete(self._queue.popleft()) for _ in range(count)]

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Submit, then yield every completion."""
        self.submit(requests)
        while self._queue:
            yield from self.poll()

    def release(self, session: Hashable) -> None:
        """Nothing is cached."""

    def score(
        self, token_ids: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.float32]]:
        """What `probe_logprobs` says of each span after the tokens before it."""
        return [
            self._probe(self.tokenizer.decode(list(ids[:start])), ids[start:end])
            for ids, (start, end) in zip(token_ids, spans, strict=True)
        ]

    def load_weights(self, state: Mapping[str, Any] | None, version: int) -> None:
        """There are no weights; the version is reported."""
        self.weights_version = version

    def _probe(self, context: str, tokens: Sequence[int]) -> NDArray[np.float32]:
        if self._probe_logprobs is None or not len(tokens):
            return np.zeros(len(tokens), np.float32)
        out = np.asarray(self._probe_logprobs(context, tokens), np.float32)
        if out.shape != (len(tokens),):
            raise ValueError(
                f"probe_logprobs returned shape {out.shape} for {len(tokens)} tokens: it must "
                "return one number for each."
            )
        return out

    def _complete(self, request: Request) -> Completion:
        context = self.tokenizer.decode(list(request.tokens))
        tokens, finish = self._say(context, request)
        self._sessions.discard(request.session)
        return Completion(
            id=request.id,
            tokens=np.array(tokens, np.int32),
            logprobs=np.zeros(len(tokens), np.float32),
            finish=finish,
            probe_logprobs=self._probe(context, request.probe),
            weights_version=self.weights_version,
        )

    def _say(self, context: str, request: Request) -> tuple[list[int], Finish]:
        stops = request.sampling.stop_token_ids
        budget = min(request.sampling.max_new_tokens, self.max_length - len(request.tokens))
        if budget <= 0:
            return [], "length"
        said = self._policy(context, request.id)
        if isinstance(said, str):
            tokens = list(self.tokenizer.encode(said, add_special_tokens=False)) + list(stops[:1])
        else:
            tokens = [int(t) for t in said]
        end = next((i + 1 for i, t in enumerate(tokens) if t in stops), None)
        if end is not None and end <= budget:
            return tokens[:end], "stop"
        return tokens[:budget], "length"
