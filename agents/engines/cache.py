"""SlotCache: keys and values of many sequences, one row each, in two static tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SCRAP = 16
"""Positions after the last usable one; only the first is used, the others keep rows aligned."""


class SlotCache:
    """Static key-value storage `[layers, rows, kv_heads, length, head_dim]`.

    The rows `[0, n)` of a layer, cut at any length, feed batched matrix products without a copy.
    The position behind the last usable one is scrap: whatever must be written but never read,
    such as the keys of padding, goes there, so that no write ever needs a mask. Rows and length
    grow by doubling.

    Attributes:
        keys: `[layers, rows, kv_heads, width, key_dim]`, where width is capacity and some; with
            `turned_keys` a view of memory ordered `[layers, rows, kv_heads, key_dim, width]`,
            in which one query against many keys is a third faster and more on a CPU.
        values: `[layers, rows, kv_heads, width, value_dim]`.
        capacity: usable positions of a row.
        width: positions of a row in memory.
        generation: rises whenever the tensors are replaced, so that views of them can be renewed.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        key_dim: int,
        value_dim: int,
        max_rows: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        turned_keys: bool = False,
    ) -> None:
        """Allocate a small cache; it grows up to `max_rows` rows of `max_length` positions."""
        self.max_rows = max_rows
        self.max_length = max_length
        self.capacity = min(max_length, 64)
        self.generation = 0
        self.turned_keys = turned_keys
        shape = (layers, min(max_rows, 8), kv_heads)
        self.keys = torch.zeros((*shape, 0, key_dim), dtype=dtype, device=device)
        self.values = torch.zeros((*shape, 0, value_dim), dtype=dtype, device=device)
        self._replace(shape[1], self.capacity)

    @property
    def rows(self) -> int:
        """Rows allocated so far."""
        return int(self.keys.shape[1])

    @property
    def scrap(self) -> int:
        """The position of a row that is written but never read."""
        return self.capacity

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` positions.

        Raises:
            ValueError: more than the cache may ever hold.
        """
        if rows > self.max_rows or length > self.max_length:
            raise ValueError(
                f"{rows} rows of {length} positions asked of a cache that holds at most "
                f"{self.max_rows} rows of {self.max_length}."
            )
        new_rows = self.rows if rows <= self.rows else min(max(rows, 2 * self.rows), self.max_rows)
        new_length = self.capacity
        if length > self.capacity:
            new_length = min(max(length, 2 * self.capacity), self.max_length)
        if new_rows == self.rows and new_length == self.capacity:
            return
        self._replace(new_rows, new_length)
        self.generation += 1

    def _replace(self, rows: int, length: int) -> None:
        self.capacity, self.width = length, length + _SCRAP
        self.keys = self._grown(self.keys, rows, turned=self.turned_keys)
        self.values = self._grown(self.values, rows, turned=False)

    def _grown(self, old: Tensor, rows: int, *, turned: bool) -> Tensor:
        layers, old_rows, heads, old_width, dim = old.shape
        inner = (dim, self.width) if turned else (self.width, dim)
        # Zeros, not empty: a masked position's weight is 0, and 0 times a stray NaN is NaN.
        new = torch.zeros((layers, rows, heads, *inner), dtype=old.dtype, device=old.device)
        if turned:
            new = new.transpose(-1, -2)
        new[:, :old_rows, :, :old_width] = old
        return new

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` positions of row `source` to each row of `targets`."""
        for tensor in (self.keys, self.values):
            part = tensor[:, source, :, :length]
            for target in targets:
                tensor[:, target, :, :length].copy_(part)

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` positions of two rows."""
        for tensor in (self.keys, self.values):
            x, y = tensor[:, a, :, :length], tensor[:, b, :, :length]
            kept = x.clone()
            x.copy_(y)
            y.copy_(kept)
