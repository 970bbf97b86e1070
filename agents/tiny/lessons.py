"""What the embedded model is taught: drills, the oracle's episodes, a careless demonstrator's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turnwise.agents.chat import Chat
from turnwise.envs.search.retrieval import make_retriever
from turnwise.envs.search.search_env import SearchEnv
from turnwise.envs.search.world import RELATIONS, Fact, make_world

GIVEN_WEIGHT = 0.02
"""Passages repeat names: predicting them a little teaches copying."""


class Example(NamedTuple):
    """Token ids [T], and the loss weight of each as a target [T]."""

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]


class Writer:
    """Conversations to examples: what the assistant says has weight 1, what it reads little."""

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        """Args: tokenizer: of the model; chat: its chat format."""
        self.tokenizer, self.chat = tokenizer, chat
        self._end = [tokenizer.eos_token_id]

    def example(self, pairs: list[tuple[str, str]]) -> Example:
        """An example of (observation, action) pairs; an action "" is left out."""
        tokens, weights = list[int](), list[float]()
        for turn, (observation, action) in enumerate(pairs):
            opening = [{"role": "user", "content": observation}]
            given = (
                self.chat.continuation(observation, closed=True)
                if turn
                else self.chat.opening(opening)
            )
            taken = self.tokenizer.encode(action, add_special_tokens=False) + self._end
            tokens += given + taken
            weights += [GIVEN_WEIGHT] * len(given) + [1.0] * len(taken)
        return Example(np.array(tokens), np.array(weights, np.float32))


def drills(writer: Writer, env: SearchEnv, seed: int) -> Iterator[Example]:
    """Reading exercises without end: passages about an entity, then several questions on it.

    Each asks for one fact, or for one that begins with it: then the move is to search for that
    fact's object. One passage serves several questions, so that most tokens teach something.
    """
    rng = random.Random(seed)
    while True:
        world = make_world(rng, "train")
        about: dict[str, list[Fact]] = {}
        for fact in world.facts:
            about.setdefault(fact.subject, []).append(fact)
        retriever = make_retriever("bm25", world.passages)
        for passage in rng.sample(world.passages, 5):
            shown = [passage]
            if rng.random() < 0.4:
                shown = [p for p, _ in retriever.search(passage.title, env.top_k)]
            if shown[0] != passage:
                continue
            facts = about[passage.title]
            pairs, before = [], env.show(shown)
            for fact in rng.sample(facts, len(facts)):
                beyond = rng.choice((0, 0, 0, 1, 2))
                tag = "search" if beyond else "answer"
                question = f"{before}\nQuestion: {_ask(fact, beyond, rng)}"
                pairs.append((question, f"<{tag}> {fact.object} </{tag}>"))
                before = ""
            yield writer.example(pairs)


def _ask(fact: Fact, beyond: int, rng: random.Random) -> str:
    """A question that begins at the fact and goes `beyond` relations further, true or not."""
    phrase, relation = f"the {fact.relation.name} of {fact.subject}", fact.relation
    for _ in range(beyond):
        relation = rng.choice([r for r in RELATIONS if r.subject == relation.object])
        phrase = f"the {relation.name} of {phrase}"
    return f"{'Who' if relation.object == 'person' else 'What'} is {phrase}?"


def episodes(
    writer: Writer,
    env: SearchEnv,
    seed: int,
    *,
    early_answer: float = 0.0,
    stray_search: float = 0.0,
    first: int = 0,
) -> Iterator[Example]:
    """Demonstrated episodes of task `first`, `first + 1`, ... without end.

    Args:
        writer: to tokens.
        env: the tasks.
        seed: of the mistakes.
        early_answer: how often a turn answers, before its time, with something seen.
        stray_search: how often a turn searches for something else seen.
        first: index of the first task.
    """
    rng = random.Random(seed)
    for index in itertools.count(first):
        yield writer.example(demonstrate(env, index, rng, early_answer, stray_search))


def demonstrate(
    env: SearchEnv,
    index: int,
    rng: random.Random,
    early_answer: float = 0.0,
    stray_search: float = 0.0,
) -> list[tuple[str, str]]:
    """One episode of task `index` as (observation, action) pairs."""
    observation, info = env.reset(options={"task": index})
    assert env.task is not None  # reset() has set it
    *stops, answer = env.task.data["path"]
    pairs, seen, at, over = list[tuple[str, str]](), [stops[0]], 0, False
    while not over:
        chance = rng.random()
        if at == len(stops):
            action = f"<answer> {answer} </answer>"
        elif chance < early_answer:
            action = f"<answer> {rng.choice(seen)} </answer>"
        elif chance < early_answer + stray_search:
            action = f"<search> {rng.choice(seen)} </search>"
        else:
            action = f"<search> {stops[at]} </search>"
            at += 1
        pairs.append((observation, action))
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        seen += info.get("titles", [])
    return pairs
