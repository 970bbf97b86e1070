"""The generated world: facts, passages, questions and splits."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.search import lexicon
from turnwise.envs.search.world import (
    RELATIONS,
    WorldTasks,
    make_world,
    sample_chain,
    split_of,
)


def test_every_word_of_the_lexicon_has_one_meaning() -> None:
    words = [
        *lexicon.FIRST_NAMES,
        *lexicon.LAST_NAMES,
        *lexicon.CITIES,
        *lexicon.COUNTRIES,
        *lexicon.TITLE_ADJECTIVES,
        *lexicon.TITLE_NOUNS,
    ]
    assert len(words) == len(set(words))


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from(["train", "heldout"]), st.integers(0, 10**6))
def test_an_item_is_a_pure_function_of_seed_and_index(seed: int, split: str, index: int) -> None:
    one, other = (WorldTasks(seed=seed, split=split, hops=(1, 2, 3, 4)) for _ in range(2))  # type: ignore[arg-type]
    other[index + 1]  # what was asked before does not matter
    assert one[index] == other[index]
    assert one[index] != one[index + 1]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_answer_follows_from_the_passages(split: str) -> None:
    for index in range(40):
        task = WorldTasks(seed=3, split=split, hops=(1, 2, 3, 4))[index]  # type: ignore[arg-type]
        path, texts = task.data["path"], {p.title: p.text for p in task.data["passages"]}
        assert len(path) == task.data["hops"] + 1
        assert len(set(path)) == len(path), "an entity comes twice"
        for here, there in itertools.pairwise(path):
            assert there in texts[here]
        assert task.reference == (path[-1],)
        assert path[0] in task.prompt
        assert path[-1] not in task.prompt


def test_a_question_names_its_relations_outermost_first() -> None:
    rng = random.Random(0)
    world = make_world(rng, "train")
    chain = sample_chain(rng, world, 3, "train")
    assert chain is not None
    first, second, third = (f.relation.name for f in chain.facts)
    phrase = f"the {third} of the {second} of the {first} of {chain.facts[0].subject}?"
    assert chain.question.endswith(phrase)
    assert chain.question.startswith(
        "Who is" if chain.facts[-1].relation.object == "person" else "What is"
    )


def test_no_subject_has_two_relations_to_one_kind() -> None:
    kinds = [(r.subject, r.object) for r in RELATIONS]
    assert len(kinds) == len(set(kinds))


def test_a_relation_has_one_object_per_subject() -> None:
    world = make_world(random.Random(1), "heldout")
    keys = [(f.subject, f.relation.name) for f in world.facts]
    assert len(keys) == len(set(keys))
    assert {f.relation.name for f in world.facts} == {r.name for r in RELATIONS}


def test_the_splits_share_no_pair_of_entities() -> None:
    pairs: dict[str, set[tuple[str, ...]]] = {"train": set(), "heldout": set()}
    for split, seen in pairs.items():
        tasks = WorldTasks(seed=0, split=split, hops=(1, 2, 3, 4))  # type: ignore[arg-type]
        for index in range(150):
            task = tasks[index]
            path = task.data["path"]
            seen.add(tuple(sorted((path[0], path[-1]))))
            names = {p.title for p in task.data["passages"]}
            for passage in task.data["passages"]:
                for other in names - {passage.title}:
                    if other in passage.text:
                        seen.add(tuple(sorted((passage.title, other))))
    assert min(map(len, pairs.values())) > 1000
    assert not pairs["train"] & pairs["heldout"]


def test_the_splits_are_of_like_size() -> None:
    people = [f"{a} {b}" for a in lexicon.FIRST_NAMES[:20] for b in lexicon.LAST_NAMES[:20]]
    share = sum(split_of(p, c) == "train" for p in people for c in lexicon.CITIES) / (400 * 40)
    assert 0.47 < share < 0.53


@pytest.mark.parametrize("hops", [(), (0,), (5,), (1, 9)])
def test_impossible_hops_are_refused(hops: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="from 1 to 4"):
        WorldTasks(hops=hops)
