"""Retrievers: hand-worked BM25, agreement with bm25s, and hostile queries for each of them."""

import importlib.util
import math
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.search.bm25 import BM25Retriever, top, words
from turnwise.envs.search.dense import DenseRetriever
from turnwise.envs.search.lucene import LuceneRetriever
from turnwise.envs.search.retrieval import RETRIEVERS, Passage, Retriever, make_retriever
from turnwise.rewards.names import UnknownNameError

PASSAGES = (
    Passage("Emma", "Emma is a novel by Jane Austen."),
    Passage("Jane Austen", "Jane Austen was born in Steventon, a village in Hampshire."),
    Passage("Hampshire", "Hampshire is a county in England. Its county town is Winchester."),
    Passage("Ulysses", "Ulysses is a novel by James Joyce."),
    Passage("Café de Flore", "Le café de Flore est à Paris 🙂 漢字."),
)

needs_lucene = pytest.mark.skipif(
    importlib.util.find_spec("pyserini") is None or importlib.util.find_spec("jnius") is None,
    reason="pyserini is not installed: pip install 'turnwise[pyserini]'",
)
needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None,
    reason="faiss is not installed: pip install 'turnwise[faiss]'",
)


def encode(texts):
    """A sentence encoder without a model: hashed word counts [n, 64]."""
    vectors = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in words(text):
            row[zlib.crc32(word.encode("utf-8", "replace")) % 64] += 1
    return vectors


KINDS = [
    pytest.param(("bm25", {}), id="bm25"),
    pytest.param(("dense", {"encode": encode, "backend": "numpy"}), id="dense-numpy"),
    pytest.param(
        ("dense", {"encode": encode, "backend": "faiss"}), id="dense-faiss", marks=needs_faiss
    ),
    pytest.param(("lucene", {}), id="lucene", marks=needs_lucene),
]


@pytest.fixture(scope="module", params=KINDS)
def make(request):
    name, options = request.param
    return lambda passages, **more: make_retriever(name, passages, **options, **more)


@pytest.fixture(scope="module")
def retriever(make):
    return make(PASSAGES)


def titles(hits):
    return [passage.title for passage, _ in hits]


# ----- every retriever


def test_finds_what_is_asked_for(retriever):
    assert isinstance(retriever, Retriever)
    assert titles(retriever.search("Where was Jane Austen born?", 1)) == ["Jane Austen"]
    assert titles(retriever.search("county of Winchester", 1)) == ["Hampshire"]
    assert titles(retriever.search("ULYSSES", 1)) == ["Ulysses"]


def test_scores_fall_and_k_bounds_the_hits(retriever):
    for k in (1, 2, 3, 5, 10**6):
        hits = retriever.search("a novel by Jane Austen of Hampshire", k)
        scores = [score for _, score in hits]
        assert 1 <= len(hits) <= min(k, len(PASSAGES)) and scores == sorted(scores, reverse=True)
        assert len(set(titles(hits))) == len(hits) and all(type(s) is float for s in scores)
        assert (
            titles(hits) == titles(retriever.search("a novel by Jane Austen of Hampshire", 99))[:k]
        )


def test_equal_scores_keep_the_order_of_the_corpus(make):
    corpus = [Passage(f"n{i}", "the same cat") for i in range(25)]
    hits = make([Passage("x", "other dog"), *corpus], titles=False).search("cat", 25)
    assert titles(hits) == [p.title for p in corpus]
    assert len({score for _, score in hits}) <= 25


def test_titles_are_searched_unless_told_otherwise(make):
    corpus = [Passage("Zanzibar", "an island"), Passage("Elba", "another island")]
    with_titles, without = (make(corpus, titles=t).search("Zanzibar", 2) for t in (True, False))
    assert titles(with_titles)[0] == "Zanzibar" and with_titles[0][1] > 0
    assert all(score == 0 for _, score in without)


HOSTILE = [
    "",
    " \n\t",
    'AND ( "',
    "title:[a TO b] ~ ^ * ? \\ || !(",
    "\x00\x01\x1f\x7f",
    "\ud800",
    "x" * 200_000,
    "austen " * 20_000,
    " ".join(f"w{i}" for i in range(20_000)),
    "漢" * 5_000,
    "🙂" * 5_000,
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_queries_give_passages_or_nothing(retriever, query):
    hits = retriever.search(query, 3)
    assert len(hits) <= 3 and all(isinstance(p, Passage) and math.isfinite(s) for p, s in hits)
    assert titles(retriever.search("born in Steventon", 1)) == ["Jane Austen"]


def test_blank_queries_find_nothing(retriever):
    for query in ("", "  ", "\n\t\u00a0"):
        assert retriever.search(query, 5) == []


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_raises(retriever, k):
    with pytest.raises(ValueError, match="k must be at least 1"):
        retriever.search("x", k)


def test_empty_corpora_and_strangers_raise(make):
    with pytest.raises(ValueError, match="corpus is empty"):
        make([])
    with pytest.raises(TypeError, match=r"passages\[1\] must be Passage"):
        make([PASSAGES[0], ("title", "text")])


def test_a_corpus_without_a_word_finds_nothing_of_worth(make):
    retriever = make([Passage("", ""), Passage("", "!!!")])
    assert all(score == 0 for _, score in retriever.search("anything", 2))


def test_pickled_copies_search_alike(retriever):
    copied = pickle.loads(pickle.dumps(retriever))
    for query in ("Jane Austen", "novel", "county town"):
        assert copied.search(query, 5) == retriever.search(query, 5)


def test_searching_from_threads(retriever):
    queries = ["Jane Austen", "novel by James", "county town", "Paris", "born in Hampshire"] * 40
    alone = [retriever.search(query, 3) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: retriever.search(query, 3), queries)) == alone


# ----- by name


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'bm25'"):
        make_retriever("bm52", PASSAGES)
    with pytest.raises(TypeError, match="k2"):
        make_retriever("bm25", PASSAGES, k2=1)


def test_a_retriever_of_ones_own_can_be_registered():
    class First:
        def __init__(self, passages):
            self.passages = list(passages)

        def search(self, query, k):
            return [(passage, 1.0) for passage in self.passages[:k]]

    RETRIEVERS.add("first", First)
    try:
        assert titles(make_retriever("first", PASSAGES).search("x", 2)) == ["Emma", "Jane Austen"]
    finally:
        del RETRIEVERS["first"]


# ----- BM25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  STOP, it's 3.5!", ["don", "t", "stop", "it", "s", "3", "5"]),
        ("naïve nai\u0308ve ﬁne", ["naïve", "naïve", "fine"]),
        ("漢字 🙂 e-mail", ["漢字", "e", "mail"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_bm25_by_hand():
    corpus = [Passage("", "cat cat dog"), Passage("", "dog"), Passage("", "bird fish")]
    retriever = BM25Retriever(corpus, k1=1.2, b=0.75)
    # Average length 2. "cat": one of three documents, twice in one of length 3.
    idf_cat = math.log(1 + 2.5 / 1.5)
    norm = 1.2 * (0.25 + 0.75 * 3 / 2)
    ((found, score),) = retriever.search("cat", 3)
    assert found is retriever.passages[0] and score == pytest.approx(idf_cat * 2 / (2 + norm))
    # "dog": two of three documents, once in lengths 3 and 1; said twice it counts twice.
    idf_dog = math.log(1 + 1.5 / 2.5)
    (short, long) = retriever.search("dog dog", 3)
    assert short[1] == pytest.approx(2 * idf_dog / (1 + 1.2 * (0.25 + 0.75 * 1 / 2)))
    assert long[1] == pytest.approx(2 * idf_dog / (1 + norm))
    assert retriever.search("unicorn", 3) == []


CORPORA = st.lists(
    st.lists(st.sampled_from("abcdefgh"), max_size=12).map(" ".join), min_size=1, max_size=12
)


@given(CORPORA, st.sampled_from([0.5, 1.2, 2.0]), st.sampled_from([0.0, 0.75, 1.0]))
def test_the_index_is_the_one_of_bm25s(texts, k1, b):
    documents = [words(text) for text in texts]
    if not any(documents):
        assert BM25Retriever([Passage("", t) for t in texts]).search("a", 1) == []
        return
    retriever = BM25Retriever([Passage("", t) for t in texts], k1=k1, b=b)
    theirs = bm25s.BM25(k1=k1, b=b, method="lucene")
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(w for d in documents for w in d))}
    theirs.scores = theirs.build_index_from_ids(
        list(vocabulary.values()), [[vocabulary[w] for w in d] for d in documents], False
    )
    theirs.vocab_dict = vocabulary
    for query in ("a", "b c", "a b c d e f g h"):
        known = [w for w in query.split() if w in vocabulary]
        scores = theirs.get_scores(known) if known else np.zeros(len(texts))
        expected = {t: s for t, s in zip(map(id, retriever.passages), scores, strict=True) if s > 0}
        hits = retriever.search(query, len(texts))
        assert {id(p) for p, _ in hits} == set(expected)
        for passage, score in hits:
            assert score == pytest.approx(expected[id(passage)], rel=1e-5)


@given(st.lists(st.integers(0, 4).map(float), min_size=1, max_size=30), st.integers(1, 40))
def test_top_is_a_stable_sort(scores, k):
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert top(np.array(scores), k) == expected


@pytest.mark.parametrize(("k1", "b"), [(-0.1, 0.5), (1.2, -0.1), (1.2, 1.1), (math.nan, 0.5)])
def test_parameters_out_of_range_raise(k1, b):
    for make in (BM25Retriever, LuceneRetriever):
        with pytest.raises(ValueError, match="k1 >= 0"):
            make(PASSAGES, k1=k1, b=b)


def test_parameters_of_zero_are_allowed():
    # k1 = 0: only whether a word occurs counts.
    hits = BM25Retriever(PASSAGES, k1=0, b=0).search("novel", 5)
    assert titles(hits) == ["Emma", "Ulysses"]
    assert [s for _, s in hits] == [pytest.approx(math.log(1 + 3.5 / 2.5))] * 2


# ----- dense


BACKENDS = ["numpy", pytest.param("faiss", marks=needs_faiss)]
PLANE = {"east": (2.0, 0.0), "north": (0.0, 1.0), "northeast": (3.0, 3.0), "nowhere": (0.0, 0.0)}


def on_plane(texts):
    return [PLANE[text] for text in texts]


@pytest.mark.parametrize("backend", BACKENDS)
def test_similarities_by_hand(backend):
    corpus = [Passage("", name) for name in PLANE]
    cosine = DenseRetriever(corpus, encode=on_plane, backend=backend, titles=False)
    assert cosine.backend == backend
    hits = cosine.search("east", 9)
    assert [p.text for p, _ in hits] == ["east", "northeast", "north", "nowhere"]
    assert [s for _, s in hits] == [pytest.approx(s, abs=1e-6) for s in (1, 2**-0.5, 0, 0)]
    dot = DenseRetriever(
        corpus, encode=on_plane, backend=backend, titles=False, similarity="dot", batch_size=1
    )
    assert [(p.text, s) for p, s in dot.search("east", 2)] == [("northeast", 6.0), ("east", 4.0)]


@needs_faiss
@given(CORPORA, st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5).map(" ".join))
def test_faiss_and_numpy_agree(texts, query):
    corpus = [Passage("", text) for text in texts]
    ours, theirs = (DenseRetriever(corpus, encode=encode, backend=b) for b in ("numpy", "faiss"))
    a, b = ours.search(query, len(texts)), theirs.search(query, len(texts))
    assert [s for _, s in a] == [pytest.approx(s, abs=1e-5) for _, s in b]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda texts: np.zeros(3), r"must return an array \[5, d\] for 5 texts.*\[3\]"),
        (lambda texts: np.zeros((1, 3)), r"shape \[1, 3\]"),
        (lambda texts: np.zeros((len(texts), 0)), r"shape \[5, 0\]"),
        (lambda texts: np.full((len(texts), 3), np.nan), "not finite"),
        (lambda texts: np.ones((len(texts), 3 if len(texts) > 1 else 4)), "returned 4 numbers"),
    ],
)
def test_wrong_encoders_are_named(encoder, message):
    with pytest.raises(ValueError, match=message):
        DenseRetriever(PASSAGES, encode=encoder).search("x", 1)


def test_wrong_dense_options_are_named():
    with pytest.raises(UnknownNameError, match="'faiss'"):
        DenseRetriever(PASSAGES, encode=encode, backend="fais")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="'cosine'"):
        DenseRetriever(PASSAGES, encode=encode, similarity="cos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        DenseRetriever(PASSAGES, encode=encode, batch_size=0)
    with pytest.raises(ValueError, match="different lengths"):
        lengths = iter(range(1, 9))
        DenseRetriever(PASSAGES, encode=lambda t: np.ones((len(t), next(lengths))), batch_size=2)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is not None, reason="faiss is installed")
def test_missing_faiss_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'turnwise\[faiss\]'"):
        DenseRetriever(PASSAGES, encode=encode, backend="faiss")
    assert DenseRetriever(PASSAGES, encode=encode).backend == "numpy"
