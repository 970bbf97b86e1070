"""Question files in the formats of HotpotQA, 2WikiMultihopQA and MuSiQue, and passage files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

from turnwise.envs.search.retrieval import Passage
from turnwise.envs.search.rows import (
    DatasetError,
    Mismatch,
    as_object,
    as_text,
    as_texts,
    checked,
    get_list,
    get_text,
    read_rows,
    shown,
)

__all__ = ["DatasetError", "Question", "Questions", "load_passages", "load_questions"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: unique in its file.
        question: its text.
        answers: accepted answers, the main one first; at least one.
        passages: the paragraphs that come with it; none in open-domain files.
        supporting: titles of the paragraphs the answer rests on, in the order of the hops where
            the file says so, else in the file's order.
        hops: how many steps lead to the answer; None where the file does not say.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()
    supporting: tuple[str, ...] = ()
    hops: int | None = None


class Questions(Sequence[Question]):
    """The questions of a file.

    Attributes:
        skipped: one error for each row that was left out (`on_error="skip"`).
    """

    def __init__(self, questions: Iterable[Question], skipped: Iterable[DatasetError] = ()) -> None:
        """Args: questions: those that loaded; skipped: why the others did not."""
        self._questions = tuple(questions)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        """How many loaded."""
        return len(self._questions)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Question, ...]: ...
    def __getitem__(self, index: int | slice) -> Question | tuple[Question, ...]:
        """One question, or a tuple of them."""
        return self._questions[index]


def load_questions(
    path: str | Path,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    limit: int | None = None,
) -> Questions:
    """The questions of a JSON list or JSONL file; the format is told for each row.

    - HotpotQA as published: `context` is a list of [title, [sentence, ...]], `supporting_facts` a
      list of [title, sentence index]; also 2WikiMultihopQA, which adds `evidences`.
    - HotpotQA as in Hugging Face `datasets`: `context` is {"title": [...], "sentences": [[...]]},
      `supporting_facts` {"title": [...], "sent_id": [...]}.
    - MuSiQue: `paragraphs` of {title, paragraph_text, is_supporting}, `answer_aliases`,
      `question_decomposition`.
    - Open domain: neither `context` nor `paragraphs`.

    Answers are under `answer`, `answers` or `golden_answers`, a text or a list of them. A row
    without `id` or `_id` gets the file's stem and its line. `hops` is the number of MuSiQue's
    sub-questions, of 2WikiMultihopQA's evidences, or of HotpotQA's supporting titles.

    Args:
        path: the file, in UTF-8.
        on_error: whether the first malformed row raises, or malformed rows are left out, which
            is told by one warning and in `Questions.skipped`.
        limit: stop after so many questions.

    Raises:
        DatasetError: a malformed row, a duplicate id, or a file without one good row. It names the
            file, the line, what was expected and what was found.
        OSError: the file cannot be opened.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}')
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or None, not {limit!r}")
    skipped: list[DatasetError] = []
    questions = tuple(islice(_questions(Path(path), on_error == "skip", skipped), limit))
    if not questions:
        if skipped:
            raise skipped[0]
        raise DatasetError(str(path), 1, "at least one question", "an empty list")
    if skipped:
        warnings.warn(
            f"Left out {len(skipped)} malformed row(s) of {path}, the first: {skipped[0]}",
            stacklevel=2,
        )
    return Questions(questions, skipped)


def load_passages(path: str | Path) -> tuple[Passage, ...]:
    r"""The passages of a JSON list or JSONL file.

    A row is {"title", "text"}, or {"contents": "title\ntext"} as in the corpora of Pyserini and
    Search-R1, where quotation marks around the title are dropped.

    Raises:
        DatasetError: a malformed row or a file without one; it names file and line.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    passages = tuple(checked(row, path, as_passage) for row in read_rows(path))
    if not passages:
        raise DatasetError(str(path), 1, "at least one passage", "an empty list")
    return passages


def _questions(path: Path, skip: bool, skipped: list[DatasetError]) -> Iterator[Question]:
    first_line: dict[str, int] = {}
    for row in read_rows(path):
        fallback = f"{path.stem}-{row.line}"

        def parse(value: Any, fallback: str = fallback) -> Question:
            question = _question(value, fallback)
            if question.id in first_line:
                seen = f"{question.id!r}, which line {first_line[question.id]} has already"
                raise Mismatch("an id that is unique in the file", seen)
            return question

        try:
            question: Question = checked(row, path, parse)
        except DatasetError as error:
            if not skip:
                raise
            skipped.append(error)
            continue
        first_line[question.id] = row.line
        yield question


def _question(value: Any, fallback_id: str) -> Question:
    row = as_object(value, "a question")
    text = get_text(row, "question", blank=False)
    answers = _answers(row)
    passages, supporting, hops = _paragraphs(row)
    return Question(_id(row, fallback_id), text, answers, passages, supporting, hops)


def _id(row: Mapping[str, Any], fallback: str) -> str:
    for key in ("id", "_id"):
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            return get_text(row, key, blank=False)
    return fallback


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row.get("answerable") is False:
        raise Mismatch("a question that can be answered", "'answerable': false")
    for key in ("answer", "answers", "golden_answers"):
        if key in row:
            break
    else:
        raise Mismatch(
            "'answer', 'answers' or 'golden_answers'", "the keys " + ", ".join(map(repr, row))
        )
    main = row[key] if isinstance(row[key], list) else [row[key]]
    aliases = get_list(row, "answer_aliases", optional=True)
    if not main:
        raise Mismatch(f"at least one answer under {key!r}", "an empty list")
    named = [(key, a) for a in main] + [("answer_aliases", a) for a in aliases]
    return tuple(dict.fromkeys(as_text(a, repr(name), blank=False) for name, a in named))


_Paragraphs = tuple[tuple[Passage, ...], tuple[str, ...], int | None]


def _paragraphs(row: Mapping[str, Any]) -> _Paragraphs:
    if "paragraphs" in row:
        return _musique(row)
    if "context" not in row:
        return (), (), None
    context = row["context"]
    if isinstance(context, dict):
        return _hugging_face(row, context)
    if isinstance(context, list):
        return _hotpot(row, context)
    raise Mismatch("a list or an object under 'context'", shown(context))


def _hotpot(row: Mapping[str, Any], context: list[Any]) -> _Paragraphs:
    passages = []
    for i, pair in enumerate(context):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Mismatch(f"[title, [sentence, ...]] as 'context'[{i}]", shown(pair))
        title = as_text(pair[0], f"'context'[{i}][0]", blank=True)
        passages.append(Passage(title, _join(as_texts(pair[1], f"'context'[{i}][1]"))))
    titles = []
    for i, pair in enumerate(get_list(row, "supporting_facts")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Mismatch(f"[title, index] as 'supporting_facts'[{i}]", shown(pair))
        titles.append(as_text(pair[0], f"'supporting_facts'[{i}][0]", blank=True))
    supporting = tuple(dict.fromkeys(titles))
    evidences = row.get("evidences")
    hops = len(evidences) if isinstance(evidences, list) else len(supporting)
    return tuple(passages), supporting, hops or None


def _hugging_face(row: Mapping[str, Any], context: Mapping[str, Any]) -> _Paragraphs:
    titles = as_texts(context.get("title"), "'context'.'title'")
    texts = get_list(context, "sentences")
    if len(titles) != len(texts):
        found = f"{len(titles)} titles and {len(texts)} lists of sentences"
        raise Mismatch("as many titles as lists of sentences in 'context'", found)
    passages = tuple(
        Passage(title, _join(as_texts(sentences, f"'context'.'sentences'[{i}]")))
        for i, (title, sentences) in enumerate(zip(titles, texts, strict=True))
    )
    facts = as_object(row.get("supporting_facts"), "'supporting_facts'")
    supporting = tuple(dict.fromkeys(as_texts(facts.get("title"), "'supporting_facts'.'title'")))
    return passages, supporting, len(supporting) or None


def _musique(row: Mapping[str, Any]) -> _Paragraphs:
    paragraphs = [as_object(p, "each of 'paragraphs'") for p in get_list(row, "paragraphs")]
    passages = tuple(
        Passage(get_text(p, "title"), get_text(p, "paragraph_text")) for p in paragraphs
    )
    steps = [
        as_object(step, "each of 'question_decomposition'")
        for step in get_list(row, "question_decomposition", optional=True)
    ]
    # As text: `idx` may be any JSON value, also one that is no key of a dict.
    places = {str(p.get("idx", i)): i for i, p in enumerate(paragraphs)}
    wanted = [str(step.get("paragraph_support_idx")) for step in steps]
    order = [places[place] for place in wanted if place in places]
    order += [i for i, p in enumerate(paragraphs) if p.get("is_supporting")]
    return passages, tuple(dict.fromkeys(passages[i].title for i in order)), len(steps) or None


def _join(sentences: Sequence[str]) -> str:
    return " ".join(stripped for s in sentences if (stripped := s.strip()))


def as_passage(value: Any) -> Passage:
    """The passage of a row of a passage file; a `Mismatch` says what is wrong with it."""
    row = as_object(value, "a passage")
    if "contents" not in row or ("title" in row and "text" in row):
        return Passage(get_text(row, "title"), get_text(row, "text"))
    title, _, text = get_text(row, "contents").partition("\n")
    if len(title) >= 2 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return Passage(title, text)
