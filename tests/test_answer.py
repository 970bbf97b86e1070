"""Answers: the official normalisation, hand-worked scores, and what a guesser must not get."""

import math
import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.rewards.names import UnknownNameError
from turnwise.rewards.verifiers.answer import exact_match, f1, judge, normalize_answer

WORDS = st.lists(
    st.sampled_from(["the", "a", "An", "yes", "no", "Paris", "paris,", "new", "York", "1990", "!"]),
    max_size=6,
).map(" ".join)
TEXTS = WORDS | st.text(max_size=40)
REFERENCES = st.lists(TEXTS, min_size=1, max_size=4)


def official(text):
    """The SQuAD v1.1 script's function, step by step as it stands there."""

    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return " ".join(remove_articles(remove_punc(text.lower())).split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a an the", ""),
        ("well-known U.S.A.", "wellknown usa"),
        ("Theodore, anna & A-team", "theodore anna ateam"),
        ("$1,234.50", "123450"),
        ("tab\tand\nline\u00a0space", "tab and line space"),
        ("«Élan» „漢字“", "«élan» „漢字“"),
        ("t.he cat", "cat"),
    ],
)
def test_normalisation_by_hand(text, expected):
    assert normalize_answer(text) == expected


@given(TEXTS)
def test_normalisation_is_the_official_one_and_idempotent(text):
    assert normalize_answer(text) == official(text)
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@pytest.mark.parametrize(
    ("prediction", "references", "em", "expected_f1"),
    [
        ("Paris", ["the Paris."], 1, 1),
        ("Paris, France", ["Paris"], 0, 2 / 3),  # P = 1/2, R = 1
        ("New York City", ["York New"], 0, 4 / 5),  # P = 2/3, R = 1
        ("New New York", ["New York York"], 0, 2 / 3),  # shared multiset {new, york} of 3 and 3
        ("London", ["Paris", "Paris, France"], 0, 0),
        ("Paris France", ["Berlin", "Paris, France"], 1, 1),
        ("yes", ["Yes."], 1, 1),
        ("yes it is", ["yes"], 0, 0),  # HotpotQA's closed answers
        ("no", ["no way"], 0, 0),
        ("noanswer", ["Paris"], 0, 0),
    ],
)
def test_scores_by_hand(prediction, references, em, expected_f1):
    assert exact_match(prediction, references) == em
    assert f1(prediction, references) == pytest.approx(expected_f1)


def test_the_closed_rule_is_an_option():
    assert f1("yes it is", ["yes"], closed=False) == pytest.approx(1 / 2)
    assert f1("no", ["no way"], closed=False) == pytest.approx(2 / 3)


@pytest.mark.parametrize("prediction", ["the", "!", "...", "An an", "?"])
def test_text_that_normalises_to_nothing_is_no_joker(prediction):
    assert normalize_answer(prediction) == ""
    for reference in ("A", "#", "Paris"):
        assert judge(prediction, [reference]).status == "wrong"
        assert f1(prediction, [reference]) == 0
    assert judge("a ", ["A"]).status == "correct"


@given(TEXTS, REFERENCES)
def test_scores_are_bounded_and_em_implies_f1(prediction, references):
    em, score = exact_match(prediction, references), f1(prediction, references)
    assert em in (0, 1) and 0 <= score <= 1
    if em:
        assert score == 1
    assert f1(prediction, references, closed=False) >= score
    # The best reference counts, wherever it stands.
    assert score == f1(prediction, references[::-1]) == max(f1(prediction, [r]) for r in references)
    assert exact_match(references[0], references) == 1


@given(TEXTS, TEXTS)
def test_one_reference_is_symmetric(one, other):
    assert exact_match(one, [other]) == exact_match(other, [one])
    assert f1(one, [other]) == pytest.approx(f1(other, [one]))


@given(WORDS, WORDS)
def test_f1_is_the_harmonic_mean(one, other):
    p, r = normalize_answer(one).split(), normalize_answer(other).split()
    shared = sum((Counter(p) & Counter(r)).values())
    if shared:
        precision, recall = shared / len(p), shared / len(r)
        harmonic = 2 * precision * recall / (precision + recall)
        assert math.isclose(f1(one, [other], closed=False), harmonic)


@pytest.mark.parametrize("prediction", [None, "", "  \n\t "])
@pytest.mark.parametrize("metric", ["em", "f1"])
def test_no_answer_is_unparsable(prediction, metric):
    verdict = judge(prediction, ["Paris"], metric=metric)
    assert (verdict.score, verdict.status) == (0, "unparsable")
    assert verdict.detail == {"em": 0.0, "f1": 0.0}


@given(st.none() | TEXTS, REFERENCES, st.sampled_from(["em", "f1"]))
def test_a_verdict_is_correct_only_on_exact_match(prediction, references, metric):
    verdict = judge(prediction, references, metric=metric)
    assert verdict.ok and verdict.score == verdict.detail[metric]
    assert (verdict.status == "correct") == (verdict.detail["em"] == 1)
    if verdict.status == "unparsable":
        assert prediction is None or not prediction.strip()


def test_partial_credit_is_wrong_all_the_same():
    verdict = judge("Paris, France", ["Paris"], metric="f1")
    assert (verdict.score, verdict.status) == (pytest.approx(2 / 3), "wrong")
    assert judge("Paris, France", ["Paris"]).score == 0


def test_listing_every_candidate_gets_no_exact_match():
    candidates = [f"Candidate{i}" for i in range(99)]
    for listing in (" ".join(candidates), ", ".join(candidates), " or ".join(candidates)):
        verdict = judge(listing, [candidates[42]], metric="f1")
        assert verdict.status == "wrong" and verdict.score <= 2 / 100


@pytest.mark.parametrize(
    "prediction",
    [
        "the " * 25_000,
        "a" * 100_000,
        "!" * 100_000,
        "\n" * 99_999 + "x",
        "Paris " * 20_000,
        "🙂" * 100_000,
    ],
)
def test_very_long_answers(prediction):
    verdict = judge(prediction, ["Paris", "the Paris"], metric="f1")
    assert verdict.status == "wrong" and verdict.score < 1e-3


def test_references_must_be_given_as_a_sequence():
    for call in (exact_match, f1, judge):
        with pytest.raises(ValueError, match=r"write \['Paris'\]"):
            call("Paris", "Paris")
        with pytest.raises(ValueError, match="empty"):
            call("Paris", [])
    with pytest.raises(UnknownNameError, match="'em'"):
        judge("Paris", ["Paris"], metric="emm")  # type: ignore[arg-type]
