"""Lucene alone: its indexes on disk, and what it says where it cannot run."""

import importlib.util
import multiprocessing
import pickle
from pathlib import Path

import pytest

from turnwise.envs.search.lucene import LuceneRetriever
from turnwise.envs.search.retrieval import Passage, make_retriever

PASSAGES = (
    Passage("Emma", "Emma is a novel by Jane Austen."),
    Passage("Jane Austen", "Jane Austen was born in Steventon, a village in Hampshire."),
    Passage("Hampshire", "Hampshire is a county in England. Its county town is Winchester."),
    Passage("Ulysses", "Ulysses is a novel by James Joyce."),
    Passage("Blank", ""),
)

needs_lucene = pytest.mark.skipif(
    importlib.util.find_spec("pyserini") is None or importlib.util.find_spec("jnius") is None,
    reason="pyserini is not installed: pip install 'turnwise[pyserini]'",
)


def titles(hits):
    return [passage.title for passage, _ in hits]


@pytest.mark.skipif(importlib.util.find_spec("pyserini") is not None, reason="it is installed")
def test_missing_pyserini_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'turnwise\[pyserini\]'"):
        make_retriever("lucene", PASSAGES)


def test_lucene_needs_passages_or_an_index():
    with pytest.raises(ValueError, match="passages, an index_dir, or both"):
        LuceneRetriever()


@needs_lucene
def test_lucene_stems_and_keeps_its_index(tmp_path):
    folder = tmp_path / "made" / "index"
    first = LuceneRetriever(PASSAGES, index_dir=folder)
    assert titles(first.search("novels", 5)) == ["Emma", "Ulysses"]
    built = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    again = LuceneRetriever(PASSAGES, index_dir=folder)
    assert built == {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert again.search("novels", 5) == first.search("novels", 5)
    assert [p.name for p in folder.parent.iterdir()] == ["index"]
    for other in (PASSAGES[:4], PASSAGES[::-1]):
        with pytest.raises(ValueError, match="not built from these"):
            LuceneRetriever(other, index_dir=folder)
    with pytest.raises(ValueError, match="does not store document"):
        LuceneRetriever(index_dir=folder).search("novels", 1)
    with pytest.raises(FileNotFoundError, match="no Lucene index"):
        LuceneRetriever(index_dir=tmp_path / "absent")


@needs_lucene
def test_lucene_opens_an_index_with_stored_texts(tmp_path):
    from turnwise.envs.search.jvm import java_class

    arguments = ["-index", str(tmp_path), "-input", "", "-collection", "JsonCollection"]
    indexer = java_class("io.anserini.index.SimpleIndexer")(
        [*arguments, "-threads", "1", "-storeRaw"]
    )
    document = java_class("io.anserini.collection.JsonCollection$Document")
    indexer.addJsonDocument(document.fromFields("a", '"Emma"\nA novel by Jane Austen.'))
    indexer.close()
    retriever = LuceneRetriever(index_dir=tmp_path)
    ((passage, score),) = retriever.search("novel", 5)
    assert passage == Passage("Emma", "A novel by Jane Austen.") and score > 0
    assert pickle.loads(pickle.dumps(retriever)).search("novel", 5) == [(passage, score)]


@needs_lucene
def test_a_temporary_index_goes_with_its_retriever():
    retriever = LuceneRetriever(PASSAGES)
    assert retriever._temporary is not None
    folder = Path(retriever._temporary.name)
    assert any(folder.iterdir())
    del retriever
    assert not folder.exists()


@needs_lucene
def test_a_fork_is_told_to_spawn():
    retriever = LuceneRetriever(PASSAGES)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def search():
        try:
            retriever.search("novel", 1)
        except RuntimeError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=search)
    process.start()
    process.join(30)
    assert receiver.poll() and "spawn" in receiver.recv()
