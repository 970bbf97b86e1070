"""BM25 over passages in memory: the default retriever, fast enough to be rebuilt for every task."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import bm25s
import numpy as np
import numpy.typing as npt

from turnwise.envs.search.retrieval import Passage, as_corpus, check_bm25, check_k, full_text

_WORD = re.compile(r"\w+")

MAX_QUERY_WORDS = 1024
"""Words of a query beyond these are not read (Lucene's own limit on clauses)."""


def words(text: str) -> list[str]:
    r"""The lower-case words of a text: runs of `\w` after Unicode NFKC.

    No stemming and no stop words. A script written without spaces gives one word per run.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class BM25Retriever:
    """Lucene's BM25 formula, scored by bm25s.

    score(q, d) = sum over the words t of q of idf(t) tf / (tf + k1 (1 - b + b |d| / avg)), with
    idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)). Kamphuis et al., "Which BM25 Do You Mean?" (2020),
    table 1, "Lucene (accurate)" (recalled; the test compares with bm25s and by hand). A word said
    twice in the query counts twice. Only passages with a positive score are returned.
    """

    def __init__(
        self,
        passages: Iterable[Passage],
        *,
        k1: float = 1.2,
        b: float = 0.75,
        titles: bool = True,
    ) -> None:
        """Index a corpus.

        Args:
            passages: the corpus, at least one passage.
            k1: how slowly repeated words saturate, at least 0.
            b: how much long passages are held back, in [0, 1].
            titles: whether the title is searched with the text.

        Raises:
            ValueError: an empty corpus, or a parameter out of range.
        """
        check_bm25(k1, b)
        self.passages = as_corpus(passages)
        documents = [words(full_text(passage, titles)) for passage in self.passages]
        self._vocabulary, self._index = _index(documents, k1, b)

    def search(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """At most `k` passages that share a word with the query, best first.

        Raises:
            ValueError: `k` is below 1.
        """
        check_k(k)
        known = [self._vocabulary[w] for w in words(query) if w in self._vocabulary]
        if not known:
            return []
        scores = self._index.get_scores_from_ids(known[:MAX_QUERY_WORDS])
        return [(self.passages[i], float(scores[i])) for i in top(scores, k) if scores[i] > 0]


def top(scores: npt.NDArray[np.floating], k: int) -> list[int]:
    """The indices of the `k` largest of scores [n], largest first, equal ones by index."""
    if k >= len(scores):
        return np.argsort(-scores, kind="stable").tolist()
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= threshold)
    order = np.argsort(-scores[candidates], kind="stable")[:k]
    return candidates[order].tolist()


def _index(documents: list[list[str]], k1: float, b: float) -> tuple[dict[str, int], bm25s.BM25]:
    """The vocabulary and the index of tokenised documents.

    The score matrix is the one of `bm25s.BM25.build_index_from_ids`, made in one go rather than
    document by document, which halves the time.
    """
    flat = [word for document in documents for word in document]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(flat))}
    n = len(documents)
    lengths = np.fromiter(map(len, documents), np.int64, n)
    terms = np.fromiter(map(vocabulary.__getitem__, flat), np.int64, len(flat))
    # One key per (term, document), so that unique sorts by term and then by document: CSC order.
    keys, tf = np.unique(terms * n + np.repeat(np.arange(n), lengths), return_counts=True)
    term, document = np.divmod(keys, n)
    df = np.bincount(term, minlength=len(vocabulary))
    idf = np.log1p((n - df + 0.5) / (df + 0.5))
    norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
    index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
    index.nonoccurrence_array = None
    index.scores = {
        "data": (idf[term] * tf / (tf + norm[document])).astype(np.float32),
        "indices": document.astype(np.int32),
        "indptr": np.concatenate(([0], np.cumsum(df))),
        "num_docs": n,
    }
    return vocabulary, index
