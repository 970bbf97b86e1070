"""Rows: which sequence occupies which cache row, and which row can lend a prefix."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


class Rows:
    """The table of cache rows: free, waiting (a session between its turns) or active.

    Attributes:
        active: bool[max_rows], rows that are being decoded.
        length: int64[max_rows], tokens whose keys and values are in the row.
    """

    def __init__(self, max_rows: int) -> None:
        """Args: max_rows: sequences that may be resident at once."""
        self.max_rows = max_rows
        self.active = np.zeros(max_rows, bool)
        self.length = np.zeros(max_rows, np.int64)
        self._tokens = np.zeros((max_rows, 64), np.int64)
        self._session: list[Hashable] = [None] * max_rows
        self._row_of: dict[Hashable, int] = {}
        self._used = np.zeros(max_rows, np.int64)
        self._clock = 0

    def row_of(self, session: Hashable) -> int | None:
        """The row where a session's cache is, if it is resident."""
        return None if session is None else self._row_of.get(session)

    def take(self, session: Hashable) -> int:
        """An empty row: the lowest free one, else that of the session idle for longest."""
        free = np.flatnonzero(~self.active & (self.length == 0))
        if len(free):
            row = int(free[0])
        else:
            used = np.where(self.active, np.iinfo(np.int64).max, self._used)
            row = int(used.argmin())
            if self.active[row]:
                raise RuntimeError(f"All {self.max_rows} rows are active.")
            self.free(row)
        self.active[row] = True
        self._session[row] = session
        if session is not None:
            self._row_of[session] = row
        return row

    def wake(self, row: int) -> None:
        """A waiting session goes on."""
        self.active[row] = True

    def fill(self, row: int, tokens: Tokens) -> None:
        """The row's keys and values are now those of `tokens`."""
        if len(tokens) > self._tokens.shape[1]:
            width = max(len(tokens), 2 * self._tokens.shape[1])
            wider = np.zeros((self.max_rows, width), np.int64)
            wider[:, : self._tokens.shape[1]] = self._tokens
            self._tokens = wider
        self._tokens[row, : len(tokens)] = tokens
        self.length[row] = len(tokens)

    def rest(self, row: int) -> None:
        """The row's completion has finished: its session waits, or the row is free."""
        if self._session[row] is None:
            self.free(row)
            return
        self.active[row] = False
        self._clock += 1
        self._used[row] = self._clock

    def disown(self, row: int) -> None:
        """The row belongs to no session: it will be free when it rests."""
        session = self._session[row]
        if session is not None:
            del self._row_of[session]
        self._session[row] = None

    def free(self, row: int) -> None:
        """Forget what is in a row."""
        self.disown(row)
        self.active[row] = False
        self.length[row] = 0

    def shared_prefix(self, row: int, tokens: Tokens) -> int:
        """How many leading tokens of `tokens` are in a row."""
        known = min(int(self.length[row]), len(tokens))
        differs = np.flatnonzero(self._tokens[row, :known] != tokens[:known])
        return int(differs[0]) if len(differs) else known

    def longest_prefix(self, tokens: Tokens) -> tuple[int, int]:
        """The row that shares most leading tokens with `tokens`, and how many (row 0 if none)."""
        width = min(len(tokens), self._tokens.shape[1])
        same = self._tokens[:, :width] == tokens[:width]
        run = (
            np.where(same.all(1), width, same.argmin(1)) if width else np.zeros(self.max_rows, int)
        )
        run = np.minimum(run, self.length)
        row = int(run.argmax())
        return row, int(run[row])

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        for array in (self.active, self.length, self._tokens, self._used):
            array[[a, b]] = array[[b, a]]
        self._session[a], self._session[b] = self._session[b], self._session[a]
        for row in (a, b):
            session = self._session[row]
            if session is not None:
                self._row_of[session] = row

    def misplaced(self) -> list[tuple[int, int]]:
        """The swaps (inactive low row, active high row) that bring all active rows to the front."""
        count = int(self.active.sum())
        holes = np.flatnonzero(~self.active[:count])
        strays = np.flatnonzero(self.active[count:]) + count
        return [(int(a), int(b)) for a, b in zip(holes, strays[::-1], strict=True)]

    def clear(self) -> None:
        """Forget everything."""
        for row in range(self.max_rows):
            self.free(row)
