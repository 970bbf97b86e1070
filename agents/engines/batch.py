"""Batch: the state of the rows that are being decoded, one tensor per quantity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turnwise.agents.engines.engine import Sampling
from turnwise.agents.engines.sampling import Knobs, sample, uniforms

_NO_STOP = -1


class Batch:
    """What each row needs to go on by itself, so that a step is a handful of tensor operations.

    A row that is not active keeps its place in every step at no harm: it does not advance, its
    position is the first free one of its cache row, and nobody reads what it samples.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        """Args: rows: of the cache; vocabulary: size of the logits; device: of the model."""
        self.rows = rows
        self.vocabulary = vocabulary
        self.device = device
        self.remaining = np.zeros(rows, np.int64)
        """Tokens each row may still sample; kept on the host."""
        self.sampled = np.zeros(rows, np.int64)
        """Tokens each row has sampled; kept on the host."""
        self._state = torch.zeros((5, rows), dtype=torch.int64, device=device)
        self._temperature = torch.ones((rows, 1), device=device)
        self._top_p = torch.ones((rows, 1), device=device)
        self._uniform = torch.zeros((rows, 16), device=device)
        self._logprobs = torch.zeros((rows, 16), device=device)
        self._out = torch.zeros((rows, 16), dtype=torch.int64, device=device)
        self._stops = torch.full((rows, 1), _NO_STOP, dtype=torch.int64, device=device)
        # Which features any row uses, so that a step skips the others.
        self._sampling: list[Sampling | None] = [None] * rows
        self._name_views()

    def _name_views(self) -> None:
        self.tokens, self.positions, self._step, self._advance, self._top_k = self._state

    def _widen(self, tokens: int, stops: int) -> None:
        """Room for completions of `tokens` tokens and for `stops` stop tokens per row."""
        if tokens > self._out.shape[1]:
            width = max(tokens, 2 * self._out.shape[1])
            for name in ("_uniform", "_logprobs", "_out"):
                old: Tensor = getattr(self, name)
                new = torch.zeros((self.rows, width), dtype=old.dtype, device=self.device)
                new[:, : old.shape[1]] = old
                setattr(self, name, new)
        if stops > self._stops.shape[1]:
            new = torch.full((self.rows, stops), _NO_STOP, dtype=torch.int64, device=self.device)
            new[:, : self._stops.shape[1]] = self._stops
            self._stops = new

    def start(
        self,
        rows: Sequence[int],
        samplings: Sequence[Sampling],
        seeds: Sequence[int],
        budgets: Sequence[int],
        positions: Sequence[int],
    ) -> None:
        """Begin a completion of at most `budgets` tokens in each of `rows`, at `positions`."""
        self._widen(max(budgets), max(len(s.stop_token_ids) for s in samplings))
        width = max(budgets)
        draws = np.zeros((len(rows), width), np.float32)
        stops = np.full((len(rows), self._stops.shape[1]), _NO_STOP, np.int64)
        for i, (row, sampling) in enumerate(zip(rows, samplings, strict=True)):
            draws[i, : budgets[i]] = uniforms(seeds[i], budgets[i])
            stops[i, : len(sampling.stop_token_ids)] = sampling.stop_token_ids
            self._sampling[row] = sampling
            self.remaining[row] = budgets[i]
            self.sampled[row] = 0
        at = self._index(rows)
        self._uniform[at, :width] = torch.from_numpy(draws).to(self.device)
        self._stops[at] = torch.from_numpy(stops).to(self.device)
        top_k = [s.top_k or self.vocabulary for s in samplings]
        state = [[0] * len(rows), list(positions), [0] * len(rows), [1] * len(rows), top_k]
        self._state[:, at] = torch.tensor(state, device=self.device)
        floats = [[s.temperature or 1.0, s.top_p] for s in samplings]
        pairs = torch.tensor(floats, dtype=torch.float32, device=self.device)
        self._temperature[at], self._top_p[at] = pairs[:, :1], pairs[:, 1:]

    def stop(self, row: int, position: int) -> None:
        """A row is no longer active; `position` is the first free one of its cache row."""
        self._sampling[row] = None
        self._state[:, row] = torch.tensor([0, position, 0, 0, self.vocabulary])
        self._stops[row] = _NO_STOP
        self._temperature[row] = 1.0
        self._top_p[row] = 1.0

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        pair, other = [a, b], [b, a]
        self._state[:, pair] = self._state[:, other]
        for tensor in (
            self._temperature, self._top_p, self._uniform, self._logprobs, self._out, self._stops
        ):  # fmt: skip
            tensor[pair] = tensor[other]
        for array in (self.remaining, self.sampled):
            array[pair] = array[other]
        self._sampling[a], self._sampling[b] = self._sampling[b], self._sampling[a]

    def knobs(self, rows: Sequence[int] | None, n: int) -> tuple[Knobs, bool]:
        """How to sample `rows` (None: the first n), and whether any of them has a stop token."""
        used = [self._sampling[r] for r in (range(n) if rows is None else rows)]
        some = {s for s in used if s is not None}
        at: slice | Tensor = slice(0, n) if rows is None else self._index(rows)
        greedy = None
        if any(s.temperature == 0 for s in some):
            flags = [[s is not None and s.temperature == 0] for s in used]
            greedy = torch.tensor(flags, device=self.device)
        knobs = Knobs(
            temperature=(
                self._temperature[at] if any(s.temperature not in (0, 1) for s in some) else None
            ),
            greedy=greedy,
            top_p=self._top_p[at] if any(s.top_p < 1 for s in some) else None,
            top_k=self._top_k[at][:, None] if any(s.top_k for s in some) else None,
        )
        return knobs, any(s.stop_token_ids for s in some)

    def take_first(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        """Sample the first token of just started rows; those of them that hit a stop token."""
        knobs, can_stop = self.knobs(rows, len(rows))
        at = self._index(rows)
        token, logprob = sample(logits, self._uniform[at, :1], knobs)
        self._out[at, :1], self._logprobs[at, :1] = token, logprob
        self.tokens[at] = token[:, 0]
        self._step[at] = 1
        self.remaining[list(rows)] -= 1
        self.sampled[list(rows)] += 1
        if not can_stop:
            return []
        hit = (token == self._stops[at]).any(1).tolist()
        return [row for row, stopped in zip(rows, hit, strict=True) if stopped]

    def take(self, n: int, logits: Tensor, knobs: Knobs, can_stop: bool) -> list[int]:
        """Sample a token for each of the first n rows; those that hit a stop token."""
        step = self._step[:n, None]
        token, logprob = sample(logits, self._uniform[:n].gather(1, step), knobs)
        self._out[:n].scatter_(1, step, token)
        self._logprobs[:n].scatter_(1, step, logprob)
        self._state[1:3, :n].add_(self._advance[:n])
        self.tokens[:n] = token[:, 0]
        if can_stop:
            hit = (token == self._stops[:n]).any(1)
            if hit.any():
                return hit.nonzero()[:, 0].tolist()
        return []

    def read(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """int64[rows, width] tokens and float32[rows, width] log-probabilities sampled so far."""
        at, width = self._index(rows), int(self.sampled[list(rows)].max())
        return self._out[at, :width].cpu().numpy(), self._logprobs[at, :width].cpu().numpy()

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.device)
