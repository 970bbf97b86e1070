"""Texts in memory that processes share, for `AsyncVectorEnv`."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Texts = npt.NDArray[np.object_]
"""A batch: an object array [n] of str."""

_LENGTH = struct.Struct("<I")


def as_texts(items: Iterable[Any]) -> Texts:
    """An object array [n] of the items, never nested however long the strings are."""
    values = list(items)
    texts = np.empty(len(values), dtype=np.object_)
    for i, value in enumerate(values):
        texts[i] = value
    return texts


@dataclass(frozen=True)
class SharedTexts:
    """One text per environment in memory that processes share: a live view.

    Slot `i` holds the length of text `i` in bytes (4 bytes, little-endian) and its UTF-8.
    `AsyncVectorEnv` makes one view for its lifetime and deep-copies it after every step: the copy
    is an ordinary object array of the texts at that moment. Whoever asks for `copy=False` gets the
    view itself.
    """

    memory: Any
    size: int
    room: int

    @classmethod
    def create(cls, size: int, room: int, context: Any) -> SharedTexts:
        """Memory for `size` empty texts of up to `room` bytes, from a multiprocessing context."""
        # The pipes of the vector environment order reads and writes: no lock is needed.
        return cls(context.RawArray("B", size * (_LENGTH.size + room)), size, room)

    def __len__(self) -> int:
        """The number of texts."""
        return self.size

    def __getitem__(self, index: int) -> str:
        """The text in a slot now."""
        if not -self.size <= index < self.size:
            raise IndexError(f"index {index} is out of range for {self.size} texts")
        view = memoryview(self.memory).cast("B")
        start = (index % self.size) * (_LENGTH.size + self.room)
        (length,) = _LENGTH.unpack_from(view, start)
        start += _LENGTH.size
        return str(view[start : start + length], "utf-8")

    def __iter__(self) -> Iterator[str]:
        """The texts now, in order."""
        return (self[i] for i in range(self.size))

    def __bool__(self) -> bool:
        """True: a worker asks this way whether there is shared memory at all."""
        return True

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Texts:
        """The texts now."""
        return as_texts(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Texts:
        """The texts now, which later steps do not change."""
        return as_texts(self)

    def write(self, index: int, text: str) -> None:
        """Put a text into a slot.

        Raises:
            ValueError: the text does not fit.
        """
        data = text.encode("utf-8")
        if len(data) > self.room:
            raise ValueError(
                f"A text of {len(data)} bytes does not fit the {self.room} bytes shared for each "
                f"environment. Write Unicode(..., shared_bytes={1 << (len(data) - 1).bit_length()})"
                " in the environment, or AsyncVectorEnv(..., shared_memory=False)."
            )
        view = memoryview(self.memory).cast("B")
        start = index * (_LENGTH.size + self.room)
        _LENGTH.pack_into(view, start, len(data))
        start += _LENGTH.size
        view[start : start + len(data)] = data
