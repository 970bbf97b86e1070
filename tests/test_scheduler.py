"""Rollouts: tokens, spans, failures, and environments of every speed."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("transformers")

from turnwise.agents.chat import Chat
from turnwise.agents.engines.engine import Sampling
from turnwise.agents.engines.scripted import ScriptedEngine
from turnwise.agents.rollout.scheduler import Episode, Scheduler
from turnwise.agents.tiny.tokenizer import make_tokenizer
from turnwise.agents.trajectory import Trajectory
from turnwise.envs.search.search_env import SearchEnv
from turnwise.envs.task import Task
from turnwise.envs.text_env import Probe, Reply, TextEnv
from turnwise.rewards.verdict import Verdict

TOKENIZER = make_tokenizer(["count on done now number one two three"], size=400)
CHAT = Chat(TOKENIZER)
MADE: list[gym.Env[str, str]] = []


class Numbers:
    """Task i is to count to i % 3 + 1."""

    size = None

    def __getitem__(self, index: int) -> Task:
        return Task(f"count-{index}", f"count to {index % 3 + 1}", index % 3 + 1)


class CountEnv(TextEnv):
    """Each turn counts one further; how it fails and how slowly is an argument."""

    metadata = {**TextEnv.metadata, "inline": True}  # noqa: RUF012

    def __init__(self, *, raises: int = 0, sleep_s: float = 0.0, slow_task: int = -1) -> None:
        super().__init__(Numbers(), max_turns=8)
        self.raises, self.sleep_s, self.slow_task = raises, sleep_s, slow_task
        MADE.append(self)

    def begin(self, task: Task) -> str:
        self.state = 0
        if self.raises and task.id == "count-1":
            type(self).failures = getattr(type(self), "failures", 0) + 1
            if type(self).failures <= self.raises:
                raise OSError("the disk is gone")
        return task.prompt

    def respond(self, action: str) -> Reply:
        assert self.task is not None
        if self.slow_task < 0 or self.task.id == f"count-{self.slow_task}":
            time.sleep(self.sleep_s)
        self.state += 1
        done = self.state == self.task.reference
        return Reply(f"number {self.state}", Verdict(1.0, "correct") if done else None, reward=0.25)

    def probe(self) -> Probe:
        return Probe(" now", " three")


class ThreadedEnv(CountEnv):
    """The same, stepped in a thread of its own."""

    metadata = {**CountEnv.metadata, "inline": False}  # noqa: RUF012


@pytest.fixture(autouse=True)
def _no_envs() -> Iterator[None]:
    MADE.clear()
    CountEnv.failures = ThreadedEnv.failures = 0  # type: ignore[attr-defined]
    yield


def scheduler(make_env: Any = CountEnv, policy: Any = None, **kwargs: Any) -> Scheduler:
    engine_kwargs = {k: kwargs.pop(k) for k in ("probe_logprobs", "max_length") if k in kwargs}
    engine = ScriptedEngine(TOKENIZER, policy or (lambda text, key: "count on"), **engine_kwargs)
    return Scheduler(engine, CHAT, make_env, sampling=Sampling(max_new_tokens=16), **kwargs)


def episodes(count: int) -> list[Episode]:
    return [Episode(i // 2, i % 2, seed=i, options={"task": i}) for i in range(count)]


def play(subject: Scheduler, count: int) -> dict[str, Trajectory]:
    try:
        return {t.task_id: t for t in subject.run(episodes(count))}
    finally:
        subject.close()


@pytest.mark.parametrize("kind", [CountEnv, ThreadedEnv])
def test_the_tokens_are_the_conversation(kind: Any) -> None:
    played = play(scheduler(kind), 6)
    assert len(played) == 6
    three = played["count-2"]
    assert TOKENIZER.decode(three.tokens) == (
        "<|user|>count to 3<|end|><|assistant|>count on<|end|>"
        "<|user|>number 1<|end|><|assistant|>count on<|end|>"
        "<|user|>number 2<|end|><|assistant|>count on<|end|>"
    )
    assert [t.text for t in three.turns] == ["count on"] * 3
    for turn in three.turns:
        assert TOKENIZER.decode(three.tokens[slice(*turn.action_span)]) == "count on<|end|>"
        assert three.action_mask[slice(*turn.action_span)].all()
        assert not three.action_mask[slice(*turn.observation_span)].any()
        assert (three.turn_of_token[slice(*turn.action_span)] == turn.index).all()
    assert int(three.action_mask.sum()) == sum(
        b - a for a, b in (t.action_span for t in three.turns)
    )
    assert three.turns[-1].observation == "number 3"
    assert three.outcome == 1.0
    assert three.turn_rewards.tolist() == [0.25, 0.25, 0.25]
    assert (three.status, three.ok, three.prompt) == ("terminated", True, "count to 3")


def test_a_turn_that_is_cut_off_is_closed_for_it() -> None:
    played = play(scheduler(policy=lambda text, key: TOKENIZER.encode("on " * 40)), 1)
    one = played["count-0"]
    assert int(one.action_mask.sum()) == 16
    two = play(scheduler(policy=lambda text, key: TOKENIZER.encode("on " * 40)), 2)["count-1"]
    start, end = two.turns[0].observation_span
    assert TOKENIZER.decode(two.tokens[start:end]) == "<|end|><|user|>number 1<|end|><|assistant|>"


@pytest.mark.parametrize("kind", [CountEnv, ThreadedEnv])
def test_a_failing_environment_costs_one_retry(kind: Any) -> None:
    subject = scheduler(lambda: kind(raises=1))
    played = play(subject, 6)
    assert all(t.ok for t in played.values())
    assert (subject.counts.retried, subject.counts.failed) == (1, 0)


@pytest.mark.parametrize("kind", [CountEnv, ThreadedEnv])
def test_one_that_fails_again_is_dropped_and_never_scored(kind: Any) -> None:
    subject = scheduler(lambda: kind(raises=2))
    played = [*subject.run(episodes(6))]
    subject.close()
    failed = [t for t in played if t.status == "failed"]
    assert len(played) == 6
    assert len(failed) == 1
    assert not failed[0].ok
    assert failed[0].verdict is None
    assert "the disk is gone" in failed[0].error
    assert (subject.counts.retried, subject.counts.failed, subject.counts.episodes) == (1, 1, 5)


def test_a_grader_that_crashed_is_no_verdict() -> None:
    class CrashEnv(CountEnv):
        def respond(self, action: str) -> Reply:
            return Reply("", Verdict(0.0, "crash", {"reason": "grader died"}))

    trajectory = play(scheduler(CrashEnv), 1)["count-0"]
    assert trajectory.status == "failed"
    assert "grader died" in trajectory.error


def test_an_environment_that_hangs_is_given_up() -> None:
    release = threading.Event()

    class HangEnv(ThreadedEnv):
        def respond(self, action: str) -> Reply:
            assert self.task is not None
            if self.task.id == "count-1":
                release.wait(60)
            return super().respond(action)

    subject = scheduler(HangEnv, step_timeout_s=0.2)
    played = play(subject, 4)
    release.set()
    assert played["count-1"].status == "failed"
    assert "no answer within 0.2 s" in played["count-1"].error
    assert all(played[f"count-{i}"].ok for i in (0, 2, 3))


def test_a_slow_environment_delays_only_itself() -> None:
    subject = scheduler(lambda: ThreadedEnv(sleep_s=0.3, slow_task=1), concurrency=4)
    order = [t.task_id for t in subject.run(episodes(12))]
    subject.close()
    assert sorted(order) == sorted(f"count-{i}" for i in range(12))
    assert order[-1] == "count-1"


def test_no_more_environments_than_episodes_in_flight() -> None:
    play(scheduler(concurrency=3), 12)
    assert len(MADE) <= 3


def test_the_reference_is_probed_before_every_turn() -> None:
    def certainty(text: str, tokens: Any) -> list[float]:
        assert TOKENIZER.decode(tokens) == " now three"
        return [-9.0, -float(text.count("number"))][-len(tokens) :]

    trajectory = play(scheduler(probe=True, probe_logprobs=certainty), 3)["count-2"]
    assert trajectory.gold_logprob is not None
    np.testing.assert_array_equal(trajectory.gold_logprob, [0.0, -1.0, -2.0, np.nan])
    assert "now" not in TOKENIZER.decode(trajectory.tokens)
    gains = [turn.scores.get("information_gain") for turn in trajectory.turns]
    assert gains[:2] == pytest.approx([np.exp(-1) - 1, np.exp(-2) - np.exp(-1)])
    assert gains[2] is None, "nothing is asked after the last turn"


def test_an_environment_without_a_probe_is_refused_with_the_remedy() -> None:
    class Silent(CountEnv):
        def probe(self) -> None:  # type: ignore[override]
            return None

    with pytest.raises(ValueError, match="override `probe"):
        play(scheduler(Silent, probe=True), 1)


def test_a_full_context_truncates_the_episode() -> None:
    trajectory = play(scheduler(max_length=24), 3)["count-2"]
    assert trajectory.status == "truncated"
    assert trajectory.verdict is not None
    assert "context full" in trajectory.verdict.detail["reason"]
    assert len(trajectory.tokens) >= trajectory.turns[-1].action_span[1]


def test_an_abandoned_run_leaves_a_scheduler_that_works() -> None:
    subject = scheduler()
    for _ in subject.run(episodes(8)):
        break
    subject.close()
    assert len(list(subject.run(episodes(8)))) == 8
    subject.close()


def test_the_oracle_solves_search_through_tokens() -> None:
    """Scripted by task, in the loop, with the real environment and its retriever."""
    oracle: dict[str, Iterator[str]] = {}
    environment = SearchEnv(split="heldout")

    def policy(text: str, key: object) -> str:
        prompt = text.split("\nQuestion: ")[1].split("<|end|>")[0]
        return next(oracle[prompt])

    for index in range(6):
        environment.reset(options={"task": index})
        assert environment.task is not None
        oracle[environment.task.prompt] = iter(list(environment.oracle()))
    subject = scheduler(lambda: SearchEnv(split="heldout"), policy)
    subject.sampling = Sampling(max_new_tokens=64)
    played = play(subject, 6)
    assert [t.outcome for t in played.values()] == [1.0] * 6
