"""Prefill: contexts, probes and spans to be scored, read in padded chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turnwise.agents.engines.engine import Request
from turnwise.agents.engines.forward import Chunk, Forward

Tokens = NDArray[np.int64]


@dataclass(slots=True)
class Work:
    """A request on its way.

    Attributes:
        request: as submitted.
        tokens: int64[T], its context.
        budget: tokens that may be sampled; 0 where the context leaves no room.
        probes: leading probe tokens that fit.
        row: its cache row, -1 before it has one.
        start: leading tokens of the context that are in the row already.
        probe_logprobs: float32[len(request.probe)], NaN until and unless computed.
    """

    request: Request
    tokens: Tokens
    budget: int
    probes: int
    row: int = -1
    start: int = 0
    probe_logprobs: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def unread(self) -> Tokens:
        """The tokens to be read: what is not cached of the context, and all probes but the last."""
        rest = self.tokens[self.start :]
        if self.probes <= 1:
            return rest
        return np.concatenate([rest, np.asarray(self.request.probe[: self.probes - 1], np.int64)])

    def gains_from(self, peer: Work, shared: int, least: int) -> bool:
        """Whether `peer`'s context has at least `least` tokens more in common than `shared`."""
        need = shared + least
        # Bytes compare ten times faster than short arrays, and every pair is compared.
        return need < len(self.tokens) and (
            self.tokens[:need].tobytes() == peer.tokens[:need].tobytes()
        )


def accept(request: Request, *, vocabulary: int, max_length: int) -> Work:
    """Check a request and size it.

    Raises:
        ValueError: an empty context, or a token outside the vocabulary.
    """
    tokens = np.asarray(request.tokens, np.int64)
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"Request {request.id!r} has an empty context.")
    both = np.concatenate([tokens, np.asarray(request.probe, np.int64)])
    if both.min() < 0 or both.max() >= vocabulary:
        raise ValueError(
            f"Request {request.id!r} has token ids from {both.min()} to {both.max()}; the "
            f"model knows 0 to {vocabulary - 1}. Is the tokenizer the model's own?"
        )
    room = max_length - len(tokens)
    return Work(
        request,
        tokens,
        budget=max(0, min(request.sampling.max_new_tokens, room)),
        # The last probe token is only looked up, so one more fits than there is room for.
        probes=max(0, min(len(request.probe), room + 1)),
        probe_logprobs=np.full(len(request.probe), np.nan, np.float32),
    )


def read_contexts(
    forward: Forward, works: Sequence[Work], *, limit: int, device: torch.device
) -> Tensor:
    """Read the contexts and probes into the cache; probe log-probabilities go into the works.

    Args:
        forward: the model.
        works: in ascending order of what is unread.
        limit: padded tokens of one pass (a longer context is a pass of its own).
        device: of the model.

    Returns:
        `[len(works), vocabulary]` logits after each context.
    """
    sizes = [len(w.unread) for w in works]
    parts = _groups(range(len(works)), sizes, limit)
    return torch.cat([_read([works[i] for i in part], forward, device) for part in parts])


def _read(works: list[Work], forward: Forward, device: torch.device) -> Tensor:
    tokens, lengths = _padded([w.unread for w in works])
    starts = np.array([w.start for w in works])
    ends = [i * tokens.shape[1] + len(w.tokens) - 1 - w.start for i, w in enumerate(works)]
    probed = [end + j for end, w in zip(ends, works, strict=True) for j in range(w.probes)]
    logits = forward.prefill(
        Chunk(
            tokens=_tensor(tokens, device),
            lengths=_tensor(lengths, device),
            starts=_tensor(starts, device),
            rows=_tensor([w.row for w in works], device),
            past=int(starts.max()),
            wanted=_tensor(ends + probed, device),
        )
    )
    if probed:
        targets = [t for w in works for t in w.request.probe[: w.probes]]
        scores = _logprobs(logits[len(works) :], _tensor(targets, device))
        for work in works:
            work.probe_logprobs[: work.probes] = scores[: work.probes]
            scores = scores[work.probes :]
    return logits[: len(works)]


def score_spans(
    forward: Forward,
    token_ids: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    *,
    limit: int,
    max_length: int,
    device: torch.device,
) -> list[NDArray[np.float32]]:
    """Log-probabilities of each sequence's span, without the cache; logits of spans alone.

    Args:
        forward: the model.
        token_ids: N sequences.
        spans: N half-open ranges [start, end).
        limit: padded tokens of one pass.
        max_length: of a sequence.
        device: of the model.

    Raises:
        ValueError: a span outside its sequence, or one that starts at the first token, which
            nothing precedes.
    """
    sequences = [np.asarray(ids, np.int64) for ids in token_ids]
    for ids, (start, end) in zip(sequences, spans, strict=True):
        if not 1 <= start <= end <= len(ids) or end > max_length:
            raise ValueError(
                f"The span [{start}, {end}) of a sequence of {len(ids)} tokens: needed is "
                f"1 <= start <= end <= length, and end <= {max_length}; the first token of a "
                "sequence has no log-probability."
            )
    out = [np.zeros(0, np.float32)] * len(sequences)
    order = sorted((i for i, (s, e) in enumerate(spans) if e > s), key=lambda i: spans[i][1])
    for part in _groups(order, [spans[i][1] - 1 for i in order], limit):
        tokens, lengths = _padded([sequences[i][: spans[i][1] - 1] for i in part])
        width = tokens.shape[1]
        wanted = [r * width + t - 1 for r, i in enumerate(part) for t in range(*spans[i])]
        chunk = Chunk(
            tokens=_tensor(tokens, device),
            lengths=_tensor(lengths, device),
            starts=_tensor([0] * len(part), device),
            rows=None,
            past=0,
            wanted=_tensor(wanted, device),
        )
        targets = np.concatenate([sequences[i][slice(*spans[i])] for i in part])
        scores = _logprobs(forward.prefill(chunk), _tensor(targets, device))
        for i in part:
            count = spans[i][1] - spans[i][0]
            out[i], scores = scores[:count].copy(), scores[count:]
    return out


def _groups(items: Sequence[int], sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Consecutive items, ascending in size, whose padded total stays within `limit`."""
    group: list[int] = []
    for item, size in zip(items, sizes, strict=True):
        if group and size * (len(group) + 1) > limit:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _padded(pieces: Sequence[Tokens]) -> tuple[Tokens, Tokens]:
    """int64[m, T] right-padded with 0, and int64[m] lengths."""
    lengths = np.array([len(p) for p in pieces])
    tokens = np.zeros((len(pieces), int(lengths.max())), np.int64)
    for row, piece in zip(tokens, pieces, strict=True):
        row[: len(piece)] = piece
    return tokens, lengths


def _logprobs(logits: Tensor, targets: Tensor) -> NDArray[np.float32]:
    """float32[w], the log-probability of each target."""
    logits = logits.float()
    picked = logits.gather(1, targets[:, None])[:, 0]
    return (picked - logits.logsumexp(-1)).cpu().numpy()


def _tensor(numbers: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.int64, device=device)
