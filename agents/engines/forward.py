"""Forward: what an engine needs of a model, whoever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens to be read in one pass, right-padded to `[m, T]`.

    Attributes:
        tokens: int64[m, T].
        lengths: int64[m], the tokens that are not padding.
        starts: int64[m], the position of each row's first token: how much of it is cached.
        rows: int64[m], the cache rows, or None: nothing is cached, neither read nor written.
        past: the largest of `starts`.
        wanted: int64[w], flat indices into `[m * T]`: where logits are wanted.
    """

    tokens: Tensor
    lengths: Tensor
    starts: Tensor
    rows: Tensor | None
    past: int
    wanted: Tensor


class Forward(Protocol):
    """A decoder with a slot cache."""

    def prefill(self, chunk: Chunk) -> Tensor:
        """Read a chunk into the cache; the logits `[w, vocabulary]` that are wanted."""
        ...

    def decode(self, tokens: Tensor, positions: Tensor, length: int) -> Tensor:
        """One token for each of the first n rows.

        Args:
            tokens: int64[n].
            positions: int64[n], where each goes; every earlier position is in the cache.
            length: greater than every position.

        Returns:
            `[n, vocabulary]` logits, valid until the next call.
        """
        ...

    def refresh(self) -> None:
        """The model's parameters changed: renew whatever was derived from them."""
