"""BM25 by Lucene, through pyserini: English stemming, stop words, large indexes on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from turnwise.envs.search.dataset import as_passage
from turnwise.envs.search.jvm import check_owner, java_class
from turnwise.envs.search.retrieval import Passage, as_corpus, check_bm25, check_k, full_text
from turnwise.envs.search.rows import Mismatch

_FINGERPRINT = "passages.sha256"

MAX_QUERY_CHARACTERS = 1024
"""Characters of a query beyond these are not read: Lucene refuses more than 1024 terms."""


class LuceneRetriever:
    """Search with Lucene's BM25 and Anserini's English analyser (Porter stemmer, stop words).

    The query is a bag of words: Lucene's query syntax has no meaning in it. One search runs at a
    time. A process that has started Lucene must not be forked (`turnwise.envs.search.jvm`).
    """

    def __init__(
        self,
        passages: Iterable[Passage] | None = None,
        *,
        index_dir: str | Path | None = None,
        k1: float = 1.2,
        b: float = 0.75,
        titles: bool = True,
        heap: str = "1g",
    ) -> None:
        """Index passages, or open an index.

        Args:
            passages: the corpus. It is kept in memory and only its index is written. None searches
                an existing index that stores its documents (`-storeRaw`), such as those made by
                `python -m pyserini.index.lucene` from {"id", "contents"}.
            index_dir: where the index is. An absent or empty folder is filled from `passages`;
                without one they go to a temporary folder that lives as long as the retriever.
            k1: how slowly repeated words saturate, at least 0.
            b: how much long passages are held back, in [0, 1].
            titles: whether the title is indexed with the text.
            heap: memory of the Java machine, if this starts it.

        Raises:
            ModuleNotFoundError: pyserini is not installed.
            FileNotFoundError: no passages, and no index at `index_dir`.
            ValueError: an empty corpus, a parameter out of range, neither passages nor
                `index_dir`, or an index that was not built from these passages.
        """
        check_bm25(k1, b)
        if passages is None and index_dir is None:
            raise ValueError("LuceneRetriever needs passages, an index_dir, or both.")
        self.passages = None if passages is None else as_corpus(passages)
        self.index_dir = None if index_dir is None else Path(index_dir)
        self._settings = (k1, b, titles, heap)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        searcher = java_class("io.anserini.search.SimpleSearcher", heap=heap)
        self._lock = threading.Lock()
        self._searcher = searcher(str(self._prepare(titles)))
        self._searcher.set_bm25(k1, b)

    def search(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """At most `k` passages that share a word with the query, best first.

        Raises:
            ValueError: `k` is below 1, or a found document is not stored or no passage.
            RuntimeError: in a process forked after Lucene was started.
        """
        check_k(k)
        check_owner()
        # Java takes no lone surrogates.
        text = query[:MAX_QUERY_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
        if not text.strip():
            return []
        with self._lock:
            hits = [(hit.docid, float(hit.score)) for hit in self._searcher.search(text, k)]
            return [(self._passage(docid), score) for docid, score in hits]

    def _passage(self, docid: str) -> Passage:
        if self.passages is not None:
            return self.passages[int(docid)]
        raw = self._searcher.doc_raw(docid)
        if raw is None:
            raise ValueError(
                f"The index at {self.index_dir} does not store document {docid!r}: build it with "
                "-storeRaw, or give the passages too."
            )
        try:
            return as_passage(json.loads(raw))
        except (Mismatch, json.JSONDecodeError) as error:
            raise ValueError(
                f"Document {docid!r} of {self.index_dir} is no passage: {error}"
            ) from None

    def _prepare(self, titles: bool) -> Path:
        """The folder with the index, which is built if need be."""
        if self.passages is None:
            if self.index_dir is None or not _holds_index(self.index_dir):
                raise FileNotFoundError(f"There is no Lucene index at {self.index_dir}.")
            return self.index_dir
        if self.index_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="turnwise-lucene-")
            _build(self.passages, Path(self._temporary.name), titles)
            return Path(self._temporary.name)
        if _holds_index(self.index_dir):
            _check_built_from(self.index_dir, self.passages, titles)
            return self.index_dir
        self.index_dir.parent.mkdir(parents=True, exist_ok=True)
        # Built aside and moved, so that no other process ever opens half an index.
        with tempfile.TemporaryDirectory(dir=self.index_dir.parent) as aside:
            _build(self.passages, Path(aside, "index"), titles)
            if not _holds_index(self.index_dir):
                os.replace(Path(aside, "index"), self.index_dir)
        _check_built_from(self.index_dir, self.passages, titles)
        return self.index_dir

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy opens `index_dir` again, or indexes the passages again."""
        return (_remake, (self.passages, self.index_dir, *self._settings))


def _remake(
    passages: tuple[Passage, ...] | None,
    index_dir: Path | None,
    k1: float,
    b: float,
    titles: bool,
    heap: str,
) -> LuceneRetriever:
    return LuceneRetriever(passages, index_dir=index_dir, k1=k1, b=b, titles=titles, heap=heap)


def _holds_index(folder: Path) -> bool:
    return any(folder.glob("segments_*"))


def _fingerprint(passages: tuple[Passage, ...], titles: bool) -> str:
    digest = hashlib.sha256()
    for passage in passages:
        text = f"{passage.title}\0{passage.text}\0" if titles else f"{passage.text}\0"
        digest.update(text.encode("utf-8", "replace"))
    return digest.hexdigest()


def _check_built_from(folder: Path, passages: tuple[Passage, ...], titles: bool) -> None:
    kept = folder / _FINGERPRINT
    if not kept.is_file() or kept.read_text() != _fingerprint(passages, titles):
        raise ValueError(
            f"The index at {folder} was not built from these {len(passages)} passages: delete it, "
            "choose another index_dir, or give index_dir alone to search what it stores."
        )


def _build(passages: tuple[Passage, ...], folder: Path, titles: bool) -> None:
    document = java_class("io.anserini.collection.JsonCollection$Document")
    # One thread, so that the same corpus gives the same index.
    arguments = ["-index", str(folder), "-input", "", "-collection", "JsonCollection"]
    indexer = java_class("io.anserini.index.SimpleIndexer")([*arguments, "-threads", "1"])
    # Anserini orders equal scores by the id as text: padded, that is the order of the corpus.
    digits = len(str(len(passages)))
    for i, passage in enumerate(passages):
        text = full_text(passage, titles).encode("utf-8", "replace").decode("utf-8")
        # Anserini leaves out blank documents; a full stop is no term.
        indexer.addJsonDocument(document.fromFields(f"{i:0{digits}d}", f"{text} ."))
    indexer.close()
    Path(folder, _FINGERPRINT).write_text(_fingerprint(passages, titles))
