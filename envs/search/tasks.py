"""Search tasks from question files, and the one place that chooses a source of tasks."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from turnwise.envs.search.dataset import Question, load_questions
from turnwise.envs.search.world import Split, WorldTasks
from turnwise.envs.task import Task, TaskSource

HELDOUT_SHARE = 5
"""One question in so many of a file is held out."""


class QuestionTasks:
    """Questions of a file, divided into train and heldout by a hash of their ids."""

    def __init__(self, questions: Sequence[Question], split: Split | Literal["all"]) -> None:
        """Args: questions: of the whole file; split: which of them."""
        self._questions = [q for q in questions if split in ("all", _split_of(q))]
        if not self._questions:
            raise ValueError(f"No question of {len(questions)} falls into the split {split!r}.")

    @property
    def size(self) -> int:
        """How many questions the split has."""
        return len(self._questions)

    def __getitem__(self, index: int) -> Task:
        """Question `index`; its `data` holds the passages, the hops and the titles to look up."""
        question = self._questions[index]
        return Task(
            id=question.id,
            prompt=question.question,
            reference=question.answers,
            data={
                "passages": question.passages,
                "hops": question.hops,
                "path": (*question.supporting, question.answers[0]),
            },
        )


def search_tasks(
    dataset: str | Path | None,
    *,
    split: str,
    seed: int,
    hops: Sequence[int],
    on_error: Literal["raise", "skip"],
) -> TaskSource:
    """The generated world for `dataset=None`, else the questions of a JSON(L) file."""
    known = ("train", "heldout") if dataset is None else ("train", "heldout", "all")
    if split not in known:
        raise ValueError(f"split must be one of {known}, not {split!r}")
    if dataset is None:
        return _world_tasks(seed, cast(Split, split), tuple(hops))
    chosen = cast("Split | Literal['all']", split)
    return QuestionTasks(_questions(str(dataset), on_error), chosen)


class _RememberedTasks:
    """A source whose last tasks are kept: the members of a group all ask for the same one."""

    def __init__(self, source: TaskSource) -> None:
        self.source = source
        self.get = functools.lru_cache(maxsize=64)(source.__getitem__)

    @property
    def size(self) -> int | None:
        return self.source.size

    def __getitem__(self, index: int) -> Task:
        return self.get(index)

    def __reduce__(self) -> tuple[type[_RememberedTasks], tuple[TaskSource]]:
        return (_RememberedTasks, (self.source,))


@functools.lru_cache(maxsize=16)
def _world_tasks(seed: int, split: Split, hops: tuple[int, ...]) -> TaskSource:
    return _RememberedTasks(WorldTasks(seed=seed, split=split, hops=hops))


@functools.lru_cache(maxsize=4)
def _questions(path: str, on_error: Literal["raise", "skip"]) -> Sequence[Question]:
    return load_questions(path, on_error=on_error)


def _split_of(question: Question) -> Split:
    return "heldout" if zlib.crc32(question.id.encode()) % HELDOUT_SHARE == 0 else "train"
