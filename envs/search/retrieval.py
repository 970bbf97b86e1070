"""Retrieval: passages, what a retriever does, and making one by name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from turnwise.rewards.names import Registry


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable piece of text under a title."""

    title: str
    text: str


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for a query.

    Searching takes any text, changes nothing, and may be done from several threads.
    """

    def search(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """At most `k` passages with their scores, best first; equal scores in corpus order."""
        ...


RETRIEVERS: Registry[str | Callable[..., Retriever]] = Registry("retriever")
"""How to make a retriever: a callable, or `module:name` of one, called as `make(passages, ...)`."""

RETRIEVERS.add("bm25", "turnwise.envs.search.bm25:BM25Retriever")
RETRIEVERS.add("dense", "turnwise.envs.search.dense:DenseRetriever")
RETRIEVERS.add("lucene", "turnwise.envs.search.lucene:LuceneRetriever")


def make_retriever(name: str, passages: Iterable[Passage], **options: Any) -> Retriever:
    """The retriever of a name over a corpus.

    Args:
        name: a key of `RETRIEVERS`: `bm25`, `dense` or `lucene`.
        passages: the corpus, at least one passage.
        options: further arguments of that retriever, such as `k1` or `encode`.

    Raises:
        UnknownNameError: no such retriever; the message lists the nearest names.
        ValueError: an empty corpus.
        TypeError: an option that retriever does not take.
    """
    make = RETRIEVERS[name]
    if isinstance(make, str):
        module, _, attribute = make.partition(":")
        make = cast("Callable[..., Retriever]", getattr(importlib.import_module(module), attribute))
    return make(passages, **options)


def as_corpus(passages: Iterable[Passage]) -> tuple[Passage, ...]:
    """The passages, checked.

    Raises:
        ValueError: there is none.
        TypeError: one is not a `Passage`.
    """
    corpus = tuple(passages)
    if not corpus:
        raise ValueError("The corpus is empty: a retriever needs at least one Passage.")
    for i, passage in enumerate(corpus):
        if not isinstance(passage, Passage):
            raise TypeError(f"passages[{i}] must be Passage(title, text), not {passage!r:.80}")
    return corpus


def check_k(k: int) -> None:
    """Raise ValueError unless `k` is at least 1."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k!r}")


def check_bm25(k1: float, b: float) -> None:
    """Raise ValueError unless BM25 is defined for these parameters."""
    if not 0 <= k1 < math.inf or not 0 <= b <= 1:
        raise ValueError(f"BM25 needs k1 >= 0 and 0 <= b <= 1, not k1={k1!r}, b={b!r}")


def full_text(passage: Passage, titles: bool) -> str:
    """What of a passage is searched: the title and the text, or the text alone."""
    return f"{passage.title}\n{passage.text}" if titles else passage.text
