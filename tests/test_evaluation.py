"""Evaluation: rates with intervals, worked by hand, and the same questions every time."""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Hashable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Sampling
from turnwise.agents.engines.scripted import ScriptedEngine
from turnwise.agents.evaluation import (
    episode_seed,
    evaluate,
    pass_at_k,
    status,
    summarise,
    wilson,
)
from turnwise.agents.tiny.make import demonstrate
from turnwise.agents.tiny.tokenizer import make_tokenizer
from turnwise.agents.trajectory import Trajectory, Turn
from turnwise.envs.search.search_env import SearchEnv
from turnwise.rewards.verdict import Verdict


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    env = SearchEnv(split="train", seed=1)
    texts = [t for i in range(20) for p in demonstrate(env, i, random.Random(i)) for t in p]
    return make_tokenizer(texts, size=512)


def trajectory(
    task: int, verdict: str | None = "correct", *, status: str = "terminated", sampled: int = 3
) -> Trajectory:
    score = 1.0 if verdict == "correct" else 0.0
    mask = np.array([False, *[True] * sampled])
    return Trajectory(
        env_id="turnwise/Search-v0",
        task_id=f"task-{task}",
        group=task,
        tokens=np.arange(len(mask), dtype=np.int32),
        logprobs=np.zeros(len(mask), np.float32),
        action_mask=mask,
        turns=(Turn(0, (1, len(mask)), (len(mask), len(mask)), "x", "", score),),
        prompt="?",
        verdict=None if verdict is None else Verdict(score, verdict),  # type: ignore[arg-type]
        status=status,  # type: ignore[arg-type]
    )


# ---------------------------------------------------------------------- estimators


def test_wilsons_interval_by_hand() -> None:
    # 8 of 10, z = 2: centre (0.8 + 4/20) / 1.4 = 5/7,
    # half width 2 sqrt(0.8 * 0.2 / 10 + 4 / 400) / 1.4 = 2 sqrt(0.026) / 1.4.
    p, low, high = wilson(8, 10, z=2)
    half = 2 * math.sqrt(0.026) / 1.4
    assert (p, low, high) == pytest.approx((0.8, 5 / 7 - half, 5 / 7 + half))


def test_wilsons_interval_as_published() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 and 0 of 20.
    assert wilson(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20)[1:] == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 400), st.floats(0, 1))
def test_wilsons_interval_holds_the_rate_and_stays_within_0_and_1(n: int, share: float) -> None:
    p, low, high = wilson(n * share, n)
    assert 0 <= low <= p <= high <= 1
    assert high - low > 0


def test_nothing_measured_is_nan() -> None:
    assert all(math.isnan(x) for x in wilson(0, 0))


def test_pass_at_k_by_hand() -> None:
    # n = 4, c = 1: two of four drawn miss the one with probability (3/4)(2/3) = 1/2.
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)
    assert pass_at_k(3, 0, 3) == 0
    assert pass_at_k(3, 1, 3) == 1


@given(st.integers(1, 7), st.data())
def test_pass_at_k_counts_the_subsets_with_a_correct_one(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations(range(n), k))
    hits = sum(min(s) < c for s in subsets)
    assert pass_at_k(n, c, k) == pytest.approx(hits / len(subsets))


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, 1, 4), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def test_episode_seeds_differ_and_never_change() -> None:
    seeds = {episode_seed(s, t, m) for s in range(5) for t in range(40) for m in range(8)}
    assert len(seeds) == 5 * 40 * 8
    assert all(0 <= s < 1 << 62 for s in seeds)
    assert episode_seed(0, 1, 2) == episode_seed(0, 1, 2) != episode_seed(0, 2, 1)


# ---------------------------------------------------------------------- summaries


def test_failed_episodes_are_counted_and_enter_no_rate() -> None:
    played = [
        trajectory(0, "correct"),
        trajectory(0, "wrong", sampled=5),
        trajectory(1, None, status="failed", sampled=100),
        trajectory(1, "timeout", sampled=100),
        trajectory(2, "correct"),
        trajectory(2, None, status="failed"),
    ]
    found = summarise(played, tasks=3, samples=2, seconds=2.0)
    # Task 0: 1 of 2. Task 1: nothing judged. Task 2: 1 of 1.
    assert found.success == wilson(1.5, 2)
    assert found.score == pytest.approx(0.75)
    assert found.failed == 3
    assert found.statuses == {"correct": 2, "wrong": 1}
    assert found.tokens == pytest.approx((3 + 5 + 3) / 3)
    assert found.tokens_per_s == pytest.approx((3 + 5 + 100 + 100 + 3 + 3) / 2)
    assert found.pass_at_k[1] == found.success
    assert found.pass_at_k[2] == wilson(1, 1)  # task 0 alone has two judged episodes
    assert [(r.played, r.correct, r.failed) for r in found.results] == [
        (2, 1, 0),
        (0, 0, 2),
        (1, 1, 1),
    ]
    assert math.isnan(found.results[1].score)


def test_nothing_but_failures_is_null_in_json() -> None:
    found = summarise([trajectory(0, None, status="failed")], tasks=1, samples=1, seconds=1.0)
    plain = found.to_json()
    assert plain["success"] is None and plain["success_ci95"] == [None, None]
    assert plain["failed"] == 1 and plain["statuses"] == {}


def test_without_a_verdict_an_outcome_of_one_is_success() -> None:
    good = trajectory(0, None)
    assert status(good) == "wrong"
    turn = Turn(0, (1, 4), (4, 4), "x", "", 1.0)
    paid = dataclasses.replace(good, turns=(turn,))
    assert status(paid) == "correct"


# ---------------------------------------------------------------------- playing


def oracle_policy(correct: Callable[[str], bool]) -> Callable[[str, Hashable], str]:
    """Solves the questions that `correct` picks, and answers "nobody" to the others."""
    env = SearchEnv(split="heldout")
    answers: dict[str, list[str]] = {}
    for task in range(8):
        observation, _ = env.reset(options={"task": task})
        answers[observation.rpartition("Question: ")[2]] = list(env.oracle())

    def act(context: str, _: Hashable) -> str:
        question = context.partition("\nQuestion: ")[2].partition("<|end|>")[0].strip()
        turn = context.count("<|assistant|>") - 1
        return answers[question][turn] if correct(question) else "<answer> nobody </answer>"

    return act


def test_the_oracle_gets_one(tokenizer: Any) -> None:
    engine = ScriptedEngine(tokenizer, oracle_policy(lambda _: True))
    found = evaluate(
        engine,
        Chat(tokenizer),
        lambda: gym.make("turnwise/Search-v0", split="heldout"),
        tasks=8,
        samples=2,
        sampling=Sampling(64),
        concurrency=3,
        keep_trajectories=True,
    )
    assert found.success == wilson(8, 8)
    assert found.success.value == found.score == 1.0
    assert found.statuses == {"correct": 16}
    assert [t.group for t in found.trajectories] == [i // 2 for i in range(16)]
    assert found.turns == pytest.approx(np.mean([len(t.turns) for t in found.trajectories]))
    assert [r.task_id for r in found.results] == [f"world-0-heldout-{i}" for i in range(8)]


def test_half_right_is_half(tokenizer: Any) -> None:
    env = SearchEnv(split="heldout")
    questions = [env.reset(options={"task": i})[0].rpartition("Question: ")[2] for i in range(8)]
    engine = ScriptedEngine(tokenizer, oracle_policy(set(questions[::2]).__contains__))
    seen: list[Trajectory] = []
    found = evaluate(
        engine,
        Chat(tokenizer),
        lambda: SearchEnv(split="heldout"),
        tasks=8,
        sampling=Sampling(64),
        on_episode=seen.append,
    )
    assert found.success == wilson(4, 8)
    assert [r.correct for r in found.results] == [1, 0] * 4
    assert found.trajectories == () and len(seen) == 8


class Coins(gym.Env[str, str]):
    """No tasks by index: the seed is the task. Broken where the seed is 2."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        assert options == {}
        if seed == 2:
            raise RuntimeError("the server is down")
        return f"seed {seed}", {"task_id": f"seed-{seed}"}

    def step(self, action: str) -> Any:
        return "", 1.0, True, False, {}


def test_environments_without_tasks_are_seeded_and_broken_ones_counted(tokenizer: Any) -> None:
    engine = ScriptedEngine(tokenizer, lambda *_: "heads")
    found = evaluate(engine, Chat(tokenizer), Coins, tasks=4, sampling=Sampling(8))
    assert [r.task_id for r in found.results] == ["seed-0", "seed-1", "", "seed-3"]
    assert (found.failed, found.success) == (1, wilson(3, 3))


def test_more_tasks_than_there_are(tokenizer: Any) -> None:
    class Two(SearchEnv):
        num_tasks = 2  # type: ignore[assignment]

    engine = ScriptedEngine(tokenizer, lambda *_: "")
    with pytest.raises(ValueError, match="has 2 tasks; 3 were asked for"):
        evaluate(engine, Chat(tokenizer), Two, tasks=3, sampling=Sampling(8))
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(engine, Chat(tokenizer), Two, tasks=0, sampling=Sampling(8))
