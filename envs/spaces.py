"""Unicode: the space of texts, made to work in Gymnasium's vector environments.

`gymnasium.spaces.Text` is no such space: its default charset lacks the blank, `contains` walks the
text in Python, and in vector environments its batches are tuples of str, which structure walkers
take apart into characters. Here a batch is a one-dimensional object array of str.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector.utils import (
    batch_differing_spaces,
    batch_space,
    concatenate,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)

from turnwise.envs.shared_texts import SharedTexts, Texts, as_texts

# What a random text is made of: plain words, white space, quotes and tags that break careless
# parsers, and characters of two, three and four bytes.
_ALPHABET = "abcdefghijklmnopqrstuvwxyz ETAOIN 0123456789 .,:;!?-_'\"`<>/{}[]()\\\n\téßλж漢字🙂🧪"
_LONGEST_SAMPLE = 64


class Unicode(gym.Space[str]):
    """Every `str` of at most `max_length` characters that can be written as UTF-8.

    Lone surrogates cannot be written and are outside. Spaces are equal when their `max_length` is:
    the other arguments change what is sampled and how texts travel, not which texts are inside.
    """

    def __init__(
        self,
        max_length: int = 1 << 20,
        examples: Sequence[str] = ("",),
        *,
        shared_bytes: int = 1 << 16,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        """Define the space.

        Args:
            max_length: the longest text, in characters.
            examples: texts of this space; every other sample is one of them.
            shared_bytes: room for one text, in bytes of UTF-8, where `AsyncVectorEnv` passes
                observations through shared memory (its default). A longer text raises.
            seed: seed of `sample`.

        Raises:
            ValueError: a negative length, no room, no example, or an example outside the space.
        """
        if max_length < 0:
            raise ValueError(f"max_length must be at least 0, not {max_length!r}")
        if not 0 < shared_bytes < 1 << 32:
            raise ValueError(f"shared_bytes must be in [1, 2**32), not {shared_bytes!r}")
        super().__init__(dtype=np.str_, seed=seed)
        self.max_length = int(max_length)
        self.shared_bytes = int(shared_bytes)
        self.examples = (examples,) if isinstance(examples, str) else tuple(examples)
        if not self.examples:
            raise ValueError('examples is empty: give at least one text, such as ("",)')
        for example in self.examples:
            if example not in self:
                raise ValueError(f"example {example!r:.80} is not a text of {self!r}")

    @property
    def is_np_flattenable(self) -> bool:
        """False: a text has no array of fixed size."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """One of `examples` every other time, else up to 64 random characters.

        Raises:
            ValueError: a mask is given; texts cannot be masked.
        """
        if mask is not None or probability is not None:
            raise ValueError("Unicode.sample takes no mask and no probability.")
        return self.draw(self.np_random)

    def draw(self, rng: np.random.Generator) -> str:
        """A sample from a generator of the caller's."""
        if rng.integers(2):
            return self.examples[int(rng.integers(len(self.examples)))]
        length = int(rng.integers(min(self.max_length, _LONGEST_SAMPLE) + 1))
        return "".join(_ALPHABET[i] for i in rng.integers(len(_ALPHABET), size=length))

    def contains(self, x: Any) -> bool:
        """Whether `x` is a text of this space; O(1) for ASCII, one fast pass otherwise."""
        if not isinstance(x, str) or len(x) > self.max_length:
            return False
        return x.isascii() or _is_encodable(x)

    def to_jsonable(self, sample_n: Sequence[str]) -> list[str]:
        """Texts are JSON already."""
        return [str(text) for text in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        """The inverse of `to_jsonable`."""
        return list(sample_n)

    def __eq__(self, other: object) -> bool:
        """Whether the same texts are inside."""
        return isinstance(other, Unicode) and other.max_length == self.max_length

    def __hash__(self) -> int:
        """Equal spaces hash alike."""
        return hash((Unicode, self.max_length))

    def __repr__(self) -> str:
        """The expression that makes an equal space."""
        return f"Unicode({self.max_length})"


class UnicodeBatch(gym.Space[Texts]):
    """One text of each of several `Unicode` spaces, as an object array [n]."""

    def __init__(
        self, spaces: Sequence[Unicode], *, seed: int | np.random.Generator | None = None
    ) -> None:
        """Args: spaces: the space of each text; seed: seed of `sample`."""
        super().__init__(shape=(len(spaces),), dtype=np.object_, seed=seed)
        self.spaces = tuple(spaces)

    @property
    def is_np_flattenable(self) -> bool:
        """False: texts have no array of fixed size."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Texts:
        """A sample of each space; masks are a ValueError, as in `Unicode.sample`."""
        if mask is not None or probability is not None:
            raise ValueError("UnicodeBatch.sample takes no mask and no probability.")
        return as_texts([space.draw(self.np_random) for space in self.spaces])

    def contains(self, x: Any) -> bool:
        """Whether `x` is an array [n] of texts."""
        if not isinstance(x, np.ndarray) or x.shape != self.shape:
            return False
        return all(text in space for text, space in zip(x, self.spaces, strict=True))

    def to_jsonable(self, sample_n: Sequence[Texts]) -> list[list[str]]:
        """One list of texts for each batch."""
        return [[str(text) for text in batch] for batch in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[Texts]:
        """The inverse of `to_jsonable`."""
        return [as_texts(batch) for batch in sample_n]

    def __eq__(self, other: object) -> bool:
        """Whether the same batches are inside."""
        return isinstance(other, UnicodeBatch) and other.spaces == self.spaces

    def __hash__(self) -> int:
        """Equal spaces hash alike."""
        return hash((UnicodeBatch, self.spaces))

    def __repr__(self) -> str:
        """The expression that makes an equal space."""
        return f"UnicodeBatch({self.spaces!r})"


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@batch_space.register(Unicode)
def _batch_space(space: Unicode, n: int = 1) -> UnicodeBatch:
    return UnicodeBatch([space] * n, seed=copy.deepcopy(space.np_random))


# Typed as dispatching on the sequence; it dispatches on the first space in it.
@batch_differing_spaces.register(Unicode)
def _batch_differing_spaces(spaces: Sequence[Unicode]) -> UnicodeBatch:  # type: ignore[misc]
    return UnicodeBatch(spaces, seed=copy.deepcopy(spaces[0].np_random))


@is_space_dtype_shape_equiv.register(Unicode)
def _is_space_dtype_shape_equiv(space_1: Unicode, space_2: gym.Space[Any]) -> bool:
    return isinstance(space_2, Unicode)


@create_empty_array.register(Unicode)
def _create_empty_array(space: Unicode, n: int = 1, fn: Callable[..., Any] = np.zeros) -> Texts:
    return as_texts([""] * n)


@concatenate.register(Unicode)
def _concatenate(space: Unicode, items: Iterable[str], out: Texts) -> Texts:
    # A new array: with copy=False an earlier observation would change under its holder.
    return as_texts(items)


# Its stub binds the type variable of `Space`, which no subclass can match.
@iterate.register(UnicodeBatch)
def _iterate(space: UnicodeBatch, items: Iterable[str]) -> Iterator[str]:  # type: ignore[misc]
    if isinstance(items, str):
        raise TypeError(f"Expected {len(space.spaces)} texts, got one str: write [{items!r:.40}].")
    texts = items.tolist() if isinstance(items, np.ndarray) else list(items)
    if len(texts) != len(space.spaces):
        raise ValueError(f"Expected {len(space.spaces)} texts, got {len(texts)}.")
    return iter(texts)


@create_shared_memory.register(Unicode)  # pyright: ignore[reportArgumentType]
def _create_shared_memory(space: Unicode, n: int = 1, ctx: Any = multiprocessing) -> SharedTexts:
    return SharedTexts.create(n, space.shared_bytes, ctx)


@read_from_shared_memory.register(Unicode)  # pyright: ignore[reportArgumentType]
def _read_from_shared_memory(space: Unicode, shared_memory: SharedTexts, n: int = 1) -> SharedTexts:
    return shared_memory


@write_to_shared_memory.register(Unicode)  # pyright: ignore[reportArgumentType]
def _write_to_shared_memory(
    space: Unicode, index: int, value: str, shared_memory: SharedTexts
) -> None:
    shared_memory.write(index, value)
