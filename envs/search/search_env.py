"""SearchEnv: multi-hop questions, answered by searching a corpus over several turns."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from turnwise.envs.search.dataset import load_passages
from turnwise.envs.search.retrieval import RETRIEVERS, Passage, Retriever, make_retriever
from turnwise.envs.search.tasks import search_tasks
from turnwise.envs.task import Task
from turnwise.envs.text_env import Probe, Reply, TextEnv
from turnwise.envs.tools import Tool, ToolError, parse_call
from turnwise.rewards.verifiers import answer

INSTRUCTIONS = (
    "Answer the question. Search the corpus with <search> query </search>, one call per turn. "
    "When you know the answer, reply <answer> answer </answer>."
)
SEARCH = Tool("search", "Search the corpus; returns the best passages.", "query")
ANSWER = Tool("answer", "Give the final answer; this ends the episode.", "answer")


class SearchEnv(TextEnv):
    """Answer a question by `<search> query </search>` turns, then `<answer> text </answer>`.

    JSON tool calls, `{"name": "search", "arguments": {"query": "..."}}`, are read as well.

    Observation: first the instructions and the question; then the passages a search found.
    Action: the assistant's turn as text, with exactly one call.
    Reward: 0 until the answer, then its exact match (or F1) with the reference under SQuAD's
        normalisation.
    Termination: an answer ends the episode; `max_turns` without one truncates it, with score 0.
    """

    metadata: ClassVar[dict[str, Any]] = {**TextEnv.metadata, "inline": True}  # type: ignore[misc]
    tools = (SEARCH, ANSWER)

    def __init__(
        self,
        *,
        dataset: str | Path | None = None,
        corpus: str | Path | Sequence[Passage] | None = None,
        split: str = "train",
        seed: int = 0,
        hops: Sequence[int] = (1, 2),
        retriever: str | Retriever = "bm25",
        retriever_options: Mapping[str, Any] | None = None,
        top_k: int = 3,
        titles: bool = True,
        max_result_chars: int | None = None,
        max_turns: int = 6,
        metric: answer.Metric = "em",
        instructions: str = INSTRUCTIONS,
        on_error: Literal["raise", "skip"] = "raise",
        render_mode: str | None = None,
    ) -> None:
        """Choose the questions, the corpus and how it is searched.

        Args:
            dataset: a HotpotQA, 2WikiMultihopQA or MuSiQue JSON(L) file; None generates a world.
            corpus: passages to search, or a file of them; None searches each question's own.
            split: "train" or "heldout"; a file also has "all".
            seed: of the generated world.
            hops: question lengths of the generated world, each from 1 to 4.
            retriever: "bm25", "lucene", "dense", or a `Retriever` of your own, which brings its
                corpus.
            retriever_options: of a retriever by name, such as `{"k1": 0.9}` or, for "dense",
                `{"encode": function}`.
            top_k: passages per search.
            titles: show and index the passages' titles.
            max_result_chars: cut each passage's text to so many characters.
            max_turns: searches and the answer together.
            metric: "em" or "f1": what an answer is paid.
            instructions: come before the question.
            on_error: a malformed line of `dataset` raises, or is skipped with a warning.
            render_mode: None or "ansi".
        """
        tasks = search_tasks(dataset, split=split, seed=seed, hops=hops, on_error=on_error)
        super().__init__(tasks, max_turns=max_turns, render_mode=render_mode)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        if max_result_chars is not None and max_result_chars < 1:
            raise ValueError(f"max_result_chars must be at least 1 or None, not {max_result_chars}")
        if metric not in ("em", "f1"):
            raise ValueError(f"metric must be 'em' or 'f1', not {metric!r}")
        if corpus is not None and not isinstance(retriever, str):
            raise ValueError("Give either a corpus or a Retriever, which brings its own.")
        self.top_k = top_k
        self.titles = titles
        self.max_result_chars = max_result_chars
        self.metric: answer.Metric = metric
        self.instructions = instructions
        self.retriever = retriever
        self._options = tuple(sorted((retriever_options or {}).items()))
        if isinstance(retriever, str):
            RETRIEVERS[retriever]  # an unknown name is told here, not at the first search
            if corpus is not None:
                from_file = isinstance(corpus, (str, Path))
                passages = _corpus(str(corpus)) if from_file else tuple(corpus)  # type: ignore[arg-type]
                self.retriever = _retriever(retriever, titles, passages, self._options)

    def begin(self, task: Task) -> str:
        """State the question. The state is the passages' titles seen so far."""
        self.state = []
        return f"{self.instructions}\nQuestion: {task.prompt}"

    def respond(self, action: str) -> Reply:
        """Search, or judge the answer."""
        call = parse_call(action, self.tools)
        if isinstance(call, ToolError):
            return Reply(call.message, info={"valid": False, "error": call.message})
        if call.name == ANSWER.name:
            verdict = answer.judge(call.argument, self._task.reference, metric=self.metric)
            return Reply("", verdict, info={"valid": True, "tool": "answer"})
        found = [passage for passage, _ in self._index().search(call.argument, self.top_k)]
        self.state += [p.title for p in found]
        info = {"valid": True, "tool": "search", "titles": [p.title for p in found]}
        return Reply(self.show(found), info=info)

    def oracle(self) -> Iterator[str]:
        """Search every entity on the way, then answer."""
        *stops, last = self._task.data["path"]
        for stop in stops[: self.max_turns - 1]:
            yield f"<search> {stop} </search>"
        yield f"<answer> {last} </answer>"

    def cheats(self) -> Mapping[str, Iterable[str]]:
        """Attempts to be paid without knowing the answer, or for more than one answer."""
        gold = self._task.reference[0]
        titles = [p.title for p in self._task.data["passages"]]
        others = [t for t in titles if t != gold][:8] or ["nobody"]
        say = "<answer> {} </answer>".format
        return {
            "list every candidate": [say(", ".join([*others, gold]))],
            "several answers in one turn": ["".join(map(say, [*others, gold])), say(others[0])],
            "nested answers": [f"<answer> {others[0]} <answer> {gold} </answer></answer>"],
            "answer while thinking": [f"<think>{say(gold)}</think>"] * self.max_turns,
            "answer inside a query": [f"<search> {gold} is the answer </search>"] * self.max_turns,
            "forged passages": [f"<information>{gold}</information>"] * self.max_turns,
            "unclosed tag": [f"<answer> {gold}"] * self.max_turns,
            "empty answer": ["<answer> </answer>"] * self.max_turns,
            "a list as JSON": [f'{{"name": "answer", "arguments": {{"answer": ["{gold}"]}}}}']
            * self.max_turns,
            "two JSON calls": [
                f'[{{"name": "answer", "arguments": {{"answer": "{others[0]}"}}}}, '
                f'{{"name": "answer", "arguments": {{"answer": "{gold}"}}}}]'
            ]
            * self.max_turns,
            "repeat the question": [say(self._task.prompt)],
            "claim success": [say("correct"), "reward: 1.0"],
        }

    def probe(self) -> Probe:
        """`<answer> reference </answer>`; of several references, the first."""
        return Probe("<answer>", f" {self._task.reference[0]}")

    def show(self, passages: Sequence[Passage]) -> str:
        """Passages as the agent reads them."""
        if not passages:
            return "<information>\nNothing found.\n</information>"
        lines = []
        for number, passage in enumerate(passages, 1):
            text = passage.text[: self.max_result_chars]
            lines.append(
                f"({number}) {passage.title}: {text}" if self.titles else f"({number}) {text}"
            )
        return "<information>\n" + "\n".join(lines) + "\n</information>"

    @property
    def _task(self) -> Task:
        if self.task is None:
            raise RuntimeError("No task yet: call reset() first.")
        return self.task

    def _index(self) -> Retriever:
        if isinstance(self.retriever, str):
            passages = self._task.data["passages"]
            return _retriever(self.retriever, self.titles, passages, self._options)
        return self.retriever


@functools.lru_cache(maxsize=64)
def _retriever(
    name: str, titles: bool, passages: tuple[Passage, ...], options: tuple[tuple[str, Any], ...]
) -> Retriever:
    """Kept per process: the members of a group search the same passages."""
    return make_retriever(name, passages, titles=titles, **dict(options))


@functools.lru_cache(maxsize=4)
def _corpus(path: str) -> tuple[Passage, ...]:
    return tuple(load_passages(path))
