"""A generated world: people, cities, countries and books, and multi-hop questions about them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from turnwise.envs.search import lexicon
from turnwise.envs.search.retrieval import Passage
from turnwise.envs.task import Task

Kind = Literal["person", "city", "country", "book"]
Split = Literal["train", "heldout"]


class Relation(NamedTuple):
    """A fact's kind: `subject` has at most one `name`, of kind `object`."""

    name: str
    subject: Kind
    object: Kind
    phrasings: tuple[str, str]


RELATIONS: tuple[Relation, ...] = (
    Relation("birthplace", "person", "city", ("was born in {}", "comes from {}")),
    Relation("mentor", "person", "person", ("studied under {}", "was taught by {}")),
    Relation("author", "book", "person", ("was written by {}", "is the work of {}")),
    Relation("setting", "book", "city", ("is set in {}", "takes place in {}")),
    Relation("country", "city", "country", ("lies in {}", "is a city of {}")),
    Relation("founder", "city", "person", ("was founded by {}", "was built by {}")),
    Relation("capital", "country", "city", ("has the capital {}", "is governed from {}")),
    Relation("leader", "country", "person", ("is led by {}", "is ruled by {}")),
)
"""No subject has two relations to objects of one kind."""
SIZES: dict[Kind, int] = {"person": 16, "city": 8, "country": 4, "book": 8}


class Fact(NamedTuple):
    """`subject` --relation--> `object`."""

    subject: str
    relation: Relation
    object: str


@dataclass(frozen=True, slots=True)
class World:
    """Facts, and one passage for each entity that has any."""

    facts: tuple[Fact, ...]
    passages: tuple[Passage, ...]


class Chain(NamedTuple):
    """A walk of facts; its question asks for the last object from the first subject."""

    facts: tuple[Fact, ...]

    @property
    def question(self) -> str:
        """Such as "Who is the mentor of the author of Silent River?"."""
        phrase = self.facts[0].subject
        for fact in self.facts:
            phrase = f"the {fact.relation.name} of {phrase}"
        asked = "Who" if self.facts[-1].relation.object == "person" else "What"
        return f"{asked} is {phrase}?"

    @property
    def path(self) -> tuple[str, ...]:
        """The entities to look up, in order, and last the answer."""
        return (*(f.subject for f in self.facts), self.facts[-1].object)


def split_of(a: str, b: str) -> Split:
    """Which split may link the entities `a` and `b`: every pair belongs to exactly one.

    A question of a split joins only entities whose pairs belong to it, so nothing that training
    could memorise about two entities helps on held-out questions.
    """
    pair = "|".join(sorted((a, b)))
    # A CRC's own bits are linear in its input, so near pairs would be correlated: mix them.
    return "train" if (zlib.crc32(pair.encode()) * 2654435761 >> 16) & 1 else "heldout"


def make_world(rng: random.Random, split: Split) -> World:
    """A world whose every fact links a pair of `split`."""
    entities = _name_entities(rng)
    facts = []
    for relation in RELATIONS:
        for subject in entities[relation.subject]:
            fitting = [
                o
                for o in entities[relation.object]
                if o != subject and split_of(subject, o) == split
            ]
            if fitting:  # a pair may be missing, as facts are in any encyclopedia
                facts.append(Fact(subject, relation, rng.choice(fitting)))
    about: dict[str, list[Fact]] = {}
    for fact in facts:
        about.setdefault(fact.subject, []).append(fact)
    passages = [Passage(name, _describe(name, about[name], rng)) for name in about]
    rng.shuffle(passages)
    return World(tuple(facts), tuple(passages))


def sample_chain(rng: random.Random, world: World, hops: int, split: Split) -> Chain | None:
    """A random walk of `hops` facts without a repeated entity, ending at a pair of `split`."""
    about: dict[str, list[Fact]] = {}
    for fact in world.facts:
        about.setdefault(fact.subject, []).append(fact)
    starts = sorted(about)
    for _ in range(64):
        at, walk = rng.choice(starts), list[Fact]()
        seen = {at}
        while len(walk) < hops:
            steps = [f for f in about.get(at, ()) if f.object not in seen]
            if not steps:
                break
            walk.append(rng.choice(steps))
            at = walk[-1].object
            seen.add(at)
        if len(walk) == hops and split_of(walk[0].subject, at) == split:
            return Chain(tuple(walk))
    return None


class WorldTasks:
    """Unlimited questions: task i, with a world of its own, is a pure function of (seed, i)."""

    size: int | None = None

    def __init__(self, *, seed: int = 0, split: Split = "train", hops: Sequence[int]) -> None:
        """Args: seed: of the whole source; split: whose pairs; hops: lengths to draw from."""
        if split not in ("train", "heldout"):
            raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
        if not hops or any(h not in (1, 2, 3, 4) for h in hops):
            raise ValueError(f"hops must be numbers from 1 to 4, not {tuple(hops)!r}")
        self.seed = seed
        self.split: Split = split
        self.hops = tuple(hops)

    def __getitem__(self, index: int) -> Task:
        """Task `index`; its `data` holds the passages, the hops and the entities to look up."""
        rng = random.Random(f"search world {self.seed} {self.split} {index}")
        hops = rng.choice(self.hops)
        while True:  # a world may be without a chain of so many hops
            world = make_world(rng, self.split)
            chain = sample_chain(rng, world, hops, self.split)
            if chain is not None:
                break
        return Task(
            id=f"world-{self.seed}-{self.split}-{index}",
            prompt=chain.question,
            reference=(chain.path[-1],),
            data={"passages": world.passages, "hops": hops, "path": chain.path},
        )


def _name_entities(rng: random.Random) -> dict[Kind, list[str]]:
    # Two people share each last name, two books each noun: searching for one also finds the other.
    firsts = rng.sample(lexicon.FIRST_NAMES, SIZES["person"])
    lasts = rng.sample(lexicon.LAST_NAMES, SIZES["person"] // 2) * 2
    adjectives = rng.sample(lexicon.TITLE_ADJECTIVES, SIZES["book"])
    nouns = rng.sample(lexicon.TITLE_NOUNS, SIZES["book"] // 2) * 2
    return {
        "person": [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)],
        "city": rng.sample(lexicon.CITIES, SIZES["city"]),
        "country": rng.sample(lexicon.COUNTRIES, SIZES["country"]),
        "book": [f"{first} {noun}" for first, noun in zip(adjectives, nouns, strict=True)],
    }


def _describe(name: str, facts: list[Fact], rng: random.Random) -> str:
    facts = rng.sample(facts, len(facts))
    said = [rng.choice(f.relation.phrasings).format(f.object) for f in facts]
    listed = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    return f"{name} {listed}."
