"""The scripted engine."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest

from turnwise.agents.engines.engine import Engine, Request, Sampling
from turnwise.agents.engines.scripted import ScriptedEngine


class Letters:
    """A tokenizer: one token per character; 0 is the end of a turn."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def shout(context: str, id: Hashable) -> str:
    return f"{context.upper()}{id}"


def ask(text: str, **options: Any) -> Request:
    sampling = Sampling(options.pop("n", 20), stop_token_ids=options.pop("stop", (0,)))
    return Request(options.pop("id", 1), Letters().encode(text), sampling, **options)


def test_it_says_what_the_policy_says() -> None:
    engine: Engine = ScriptedEngine(Letters(), shout)
    engine.load_weights(None, 5)
    first, second = engine.generate([ask("ab"), ask("cd", id="x")])
    assert Letters().decode(first.tokens.tolist()) == "AB1\0"
    assert Letters().decode(second.tokens.tolist()) == "CDx\0"
    assert (first.finish, first.id, first.weights_version) == ("stop", 1, 5)
    assert first.tokens.dtype == np.int32 and not first.logprobs.any()
    assert len(first.logprobs) == 4 and not list(engine.generate([]))


@pytest.mark.parametrize(
    ("said", "n", "expected", "finish"),
    [
        ([5, 0, 6], 9, [5, 0], "stop"),
        ([5, 6], 9, [5, 6], "length"),
        ("abcd", 4, [97, 98, 99, 100], "length"),
        ("abc", 4, [97, 98, 99, 0], "stop"),
        ("", 4, [0], "stop"),
    ],
)
def test_stops_and_budgets(said: Any, n: int, expected: list[int], finish: str) -> None:
    (done,) = ScriptedEngine(Letters(), lambda text, id: said).generate([ask("?", n=n)])
    assert (done.tokens.tolist(), done.finish) == (expected, finish)


def test_the_context_limit() -> None:
    engine = ScriptedEngine(Letters(), shout, max_length=4)
    short, full = engine.generate([ask("abc"), ask("abcd")])
    assert short.tokens.tolist() == [65] and len(full.tokens) == 0 and full.finish == "length"


def test_probes_and_scores() -> None:
    def by_length(context: str, tokens: Any) -> list[float]:
        return [-float(len(context) + i) for i in range(len(tokens))]

    engine = ScriptedEngine(Letters(), shout, probe_logprobs=by_length)
    (done,) = engine.generate([ask("abc", probe=(1, 2))])
    assert done.probe_logprobs.tolist() == [-3.0, -4.0]
    assert engine.score([[1, 2, 3]], [(1, 3)])[0].tolist() == [-1.0, -2.0]
    plain = ScriptedEngine(Letters(), shout)
    assert plain.score([[1, 2, 3], [1]], [(1, 3), (1, 1)])[0].tolist() == [0.0, 0.0]
    wrong = ScriptedEngine(Letters(), shout, probe_logprobs=lambda context, tokens: [0.0])
    with pytest.raises(ValueError, match="one number for each"):
        wrong.score([[1, 2, 3]], [(1, 3)])


def test_it_is_as_strict_as_a_real_engine() -> None:
    engine = ScriptedEngine(Letters(), shout)
    with pytest.raises(ValueError, match="empty context"):
        engine.submit([ask("a"), ask("")])
    with pytest.raises(ValueError, match="in flight"):
        engine.submit([ask("a", session="s"), ask("b", session="s")])
    assert engine.poll() == []
    engine.submit([ask("a", session="s"), ask("b")])
    assert len(engine.poll()) == 1
    engine.submit([ask("a", session="s")])
    assert len(engine.poll()) == 1 and len(engine.poll()) == 1
    engine.release("s")
