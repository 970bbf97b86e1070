"""Dense retrieval: passages and queries as vectors of any sentence encoder."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from turnwise.envs.search.bm25 import top
from turnwise.envs.search.retrieval import Passage, as_corpus, check_k, full_text
from turnwise.rewards.names import unknown_name

Encoder = Callable[[list[str]], npt.ArrayLike]
"""Texts [n] to vectors [n, d]; for example `SentenceTransformer(name).encode`."""

Backend = Literal["auto", "faiss", "numpy"]
Similarity = Literal["cosine", "dot"]


class DenseRetriever:
    """Exact search for the largest similarity, over all passages.

    With `faiss`, passages of equal score at the cut of `k` are chosen by faiss; those returned are
    in corpus order, as with `numpy`.
    """

    def __init__(
        self,
        passages: Iterable[Passage],
        *,
        encode: Encoder,
        backend: Backend = "auto",
        similarity: Similarity = "cosine",
        titles: bool = True,
        batch_size: int = 256,
    ) -> None:
        """Encode and index a corpus.

        Args:
            passages: the corpus, at least one passage.
            encode: the sentence encoder. It is called by one thread at a time, and must pickle
                if the retriever is to.
            backend: `faiss` (the `faiss` extra), `numpy`, or `auto`: faiss where installed.
            similarity: the cosine of two vectors, or their inner product.
            titles: whether the title is encoded with the text.
            batch_size: how many passages are encoded at a time.

        Raises:
            ValueError: an empty corpus, a batch size below 1, or vectors of the wrong shape.
            UnknownNameError: no such backend or similarity.
            ModuleNotFoundError: `backend="faiss"` without faiss.
        """
        if backend not in get_args(Backend):
            raise unknown_name("backend", backend, get_args(Backend))
        if similarity not in get_args(Similarity):
            raise unknown_name("similarity", similarity, get_args(Similarity))
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size!r}")
        self.passages = as_corpus(passages)
        self.backend: Literal["faiss", "numpy"] = _choose(backend)
        self.similarity = similarity
        self._encode = encode
        self._lock = threading.Lock()
        texts = [full_text(passage, titles) for passage in self.passages]
        starts = range(0, len(texts), batch_size)
        parts = [self._vectors(texts[i : i + batch_size]) for i in starts]
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError("encode returned vectors of different lengths for different batches.")
        self._matrix = np.concatenate(parts)
        self._index = self._build()

    def search(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """The `k` passages most similar to the query, best first; none for a blank query.

        Raises:
            ValueError: `k` is below 1, or `encode` returned a vector of another length.
        """
        check_k(k)
        if not query.strip():
            return []
        vector = self._vectors([query])
        if vector.shape[1] != self._matrix.shape[1]:
            raise ValueError(
                f"encode returned {vector.shape[1]} numbers for the query and "
                f"{self._matrix.shape[1]} for the passages."
            )
        if self._index is None:
            scores = self._matrix @ vector[0]
            return [(self.passages[i], float(scores[i])) for i in top(scores, k)]
        found, indices = self._index.search(vector, min(k, len(self.passages)))
        ranked = sorted(zip(found[0].tolist(), indices[0].tolist(), strict=True), key=_rank)
        return [(self.passages[i], score) for score, i in ranked]

    def _vectors(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """The vectors [n, d] of texts, of length 1 for the cosine."""
        with self._lock:
            vectors = np.array(self._encode(texts), dtype=np.float32, order="C")
        if vectors.ndim != 2 or len(vectors) != len(texts) or vectors.shape[1] == 0:
            raise ValueError(
                f"encode must return an array [{len(texts)}, d] for {len(texts)} texts, "
                f"not one of shape {list(vectors.shape)}"
            )
        if not np.isfinite(vectors).all():
            raise ValueError("encode returned a vector that is not finite.")
        if self.similarity == "cosine":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(norms == 0, 1, norms)
        return vectors

    def _build(self) -> Any:
        if self.backend == "numpy":
            return None
        import faiss

        index = faiss.IndexFlatIP(self._matrix.shape[1])
        index.add(self._matrix)
        return index

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock and the index, which are made anew."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_index")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse of `__getstate__`."""
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._index = self._build()


def _rank(hit: tuple[float, int]) -> tuple[float, int]:
    score, index = hit
    return -score, index


def _choose(backend: Backend) -> Literal["faiss", "numpy"]:
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not installed:
        raise ModuleNotFoundError(
            "backend='faiss' needs faiss: pip install 'turnwise[faiss]', or choose backend='numpy'."
        )
    return "faiss" if installed and backend != "numpy" else "numpy"
