"""Short answers judged against references: SQuAD normalisation, exact match and token F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from turnwise.rewards.names import unknown_name
from turnwise.rewards.verdict import Verdict

Metric = Literal["em", "f1"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


def normalize_answer(text: str) -> str:
    """The official SQuAD normalisation: lower case, no ASCII punctuation, articles or extra space.

    The steps and their order are those of `normalize_answer` in the SQuAD v1.1 and HotpotQA
    evaluation scripts (exact): lower, delete the 32 characters of `string.punctuation` (nothing is
    put in their place, so `well-known` becomes `wellknown`), put a space for each whole word
    a/an/the, split on whitespace and join with one space. Punctuation outside ASCII stays.
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one normalised reference, else 0.0.

    As in the official scripts (exact), but for texts that normalise to nothing. Any two of those
    are equal there, so that "the" or "!" would be right where the reference is "A". Here such a
    text is compared in lower case as it stands.

    Raises:
        ValueError: no reference is given, or `references` is a single str.
    """
    _check_references(references)
    said = _compared(prediction)
    return float(any(said == _compared(reference) for reference in references))


def f1(prediction: str, references: Sequence[str], *, closed: bool = True) -> float:
    """The largest token F1 of the prediction against any reference, in [0, 1].

    With P and R the multisets of normalised tokens, F1 = 2 |P ∩ R| / (|P| + |R|), the harmonic mean
    of precision |P ∩ R| / |P| and recall |P ∩ R| / |R| (SQuAD evaluation script, exact). Texts that
    normalise to nothing are compared as in `exact_match`.

    Args:
        prediction: the answer given.
        references: accepted answers, at least one.
        closed: HotpotQA's rule (`f1_score` of its script, exact): where either side normalises to
            yes, no or noanswer, the F1 is 1 if both are the same and 0 otherwise, so that
            "no, it was Paris" earns nothing from the reference "no".

    Raises:
        ValueError: no reference is given, or `references` is a single str.
    """
    _check_references(references)
    said = _compared(prediction)
    return max(_pair_f1(said, _compared(reference), closed) for reference in references)


def judge(prediction: str | None, references: Sequence[str], *, metric: Metric = "em") -> Verdict:
    """Judge a short answer.

    Time is linear in the prediction, and its length is not limited: an essay or a list of all
    candidates that holds the answer gets no exact match, and an F1 that falls with its length.

    Args:
        prediction: the answer given; None or blank text is unparsable and scores 0.
        references: accepted answers, at least one.
        metric: the score, `em` or `f1`; both are in `detail`.

    Returns:
        A verdict that is `correct` if and only if the exact match is 1, `unparsable` where there
        is no answer, and `wrong` otherwise, with `detail == {"em": ..., "f1": ...}`.

    Raises:
        ValueError: no reference is given, or an unknown metric.
    """
    if metric not in get_args(Metric):
        raise unknown_name("answer metric", metric, get_args(Metric))
    _check_references(references)
    if prediction is None or not prediction.strip():
        return Verdict(0.0, "unparsable", {"em": 0.0, "f1": 0.0})
    detail = {"em": exact_match(prediction, references), "f1": f1(prediction, references)}
    return Verdict(detail[metric], "correct" if detail["em"] else "wrong", detail)


def _compared(text: str) -> str:
    """The text in the form that is compared: normalised, unless nothing would remain."""
    return normalize_answer(text) or " ".join(text.lower().split())


def _pair_f1(prediction: str, reference: str, closed: bool) -> float:
    if prediction == reference:
        return 1.0
    if closed and (prediction in _CLOSED_ANSWERS or reference in _CLOSED_ANSWERS):
        return 0.0
    predicted, expected = prediction.split(), reference.split()
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / max(len(predicted) + len(expected), 1)


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str):
        raise ValueError(f"references must be a sequence of str: write [{references!r}].")
    if not references:
        raise ValueError("references is empty: a question needs at least one accepted answer.")
