"""Conformance: what every text environment must do, as executable checks."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import gymnasium as gym
import numpy as np

from turnwise.envs.spaces import Unicode
from turnwise.envs.text_env import TextEnv

HOSTILE_ACTIONS = (
    "",
    " \n\t",
    "\x00\x07",
    "<" * 2000,
    "{" * 2000,
    '{"name": null}',
    '{"tool_calls": 3}',
    "<tool_call>[]</tool_call>",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ‮ é \U0001f600",
    "x" * 100_000,
    "<answer></answer>",
    "'; DROP TABLE answers; --",
)
"""Nonsense that must come back as an observation, never as an exception."""

Transition = tuple[str, float, bool, bool, dict[str, Any]]
E = TypeVar("E", bound=Callable[..., None])
CHECKS: list[Callable[[gym.Env[str, str]], None]] = []


class ConformanceError(AssertionError):
    """An environment breaks the contract; the message says which part and how."""


def check_text_env(env: gym.Env[str, str], *, tasks: int = 3) -> list[str]:
    """Assert the whole contract of a `TextEnv`; plug-in authors run it on theirs.

    Args:
        env: made by `gymnasium.make` or directly; it is used up and closed.
        tasks: on how many tasks oracle and cheats are tried.

    Returns:
        The names of the checks that passed, in order.

    Raises:
        ConformanceError: naming the check and what was seen.
    """
    passed = []
    try:
        for check in CHECKS:
            options = {"tasks": tasks} if check in (oracle_scores_one, cheats_score_zero) else {}
            check(env, **options)
            passed.append(check.__name__.replace("_", " "))
    finally:
        env.close()
    return passed


def _check(function: E) -> E:
    CHECKS.append(function)
    return function


def _demand(holds: object, message: str) -> None:
    if not holds:
        raise ConformanceError(message)


def _text_env(env: gym.Env[str, str]) -> TextEnv:
    _demand(isinstance(env.unwrapped, TextEnv), f"{env} is not a TextEnv underneath.")
    return env.unwrapped  # type: ignore[return-value]


def _play(env: gym.Env[str, str], actions: Iterable[str]) -> list[Transition]:
    transitions = []
    for action in actions:
        transitions.append(cast(Transition, env.step(action)))
        if transitions[-1][2] or transitions[-1][3]:
            break
    return transitions


@_check
def spaces_are_text(env: gym.Env[str, str]) -> None:
    """Both spaces are `Unicode` and hold what the environment says."""
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        _demand(isinstance(space, Unicode), f"The {name} space is {space}, not Unicode.")
    observation, info = env.reset(seed=1)
    _demand(env.observation_space.contains(observation), f"reset() gave {observation!r}.")
    _demand(info.get("task_id"), "reset()'s info has no task_id.")
    messages = info.get("messages")
    _demand(
        isinstance(messages, list) and messages and messages[-1]["content"] == observation,
        "info['messages'] does not end with the first observation.",
    )


@_check
def seeds_decide_everything(env: gym.Env[str, str]) -> None:
    """The same seed and actions give the same episode; other seeds give other tasks."""
    _text_env(env)
    episodes = []
    for _ in range(2):
        observation, info = env.reset(seed=123)
        actions = itertools.islice(_sampled(env), 4)
        episodes.append((observation, info, _play(env, actions)))
    _demand(episodes[0] == episodes[1], "Two episodes of seed 123 differ.")
    drawn = {env.reset(seed=seed)[1]["task_id"] for seed in range(16)}
    size = _text_env(env).num_tasks
    _demand(size == 1 or len(drawn) > 1, "Sixteen seeds all drew the same task.")


@_check
def global_randomness_is_untouched(env: gym.Env[str, str]) -> None:
    """Neither `random` nor `numpy.random` is seeded or drawn from."""
    saved = _global_states()
    try:
        # Off any seed that the environment may set: setting the same one again would go unseen.
        random.random()
        np.random.random()
        before = _global_states()
        env.reset(seed=5)
        _play(env, itertools.islice(_sampled(env), 3))
        moved = str(_global_states()) != str(before)
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
    _demand(not moved, "An episode moved a global random generator.")


@_check
def tasks_are_chosen_by_index(env: gym.Env[str, str]) -> None:
    """`options={"task": i}` decides the task whatever the seed; a bad index is a ValueError."""
    prompts = [env.reset(seed=seed, options={"task": 0})[0] for seed in (1, 2)]
    _demand(prompts[0] == prompts[1], 'options={"task": 0} depends on the seed.')
    for bad in (-1, "zero", 1.5, _text_env(env).num_tasks):
        if bad is not None:
            reset = functools.partial(env.reset, options={"task": bad})
            _raises(ValueError, reset, f"task {bad!r}")


@_check
def episodes_end_once(env: gym.Env[str, str]) -> None:
    """The budget truncates, with a verdict; a step after the end is refused."""
    env.reset(seed=2)
    inner = _text_env(env)
    transitions = _play(env, itertools.repeat("", inner.max_turns + 1))
    _demand(len(transitions) <= inner.max_turns, f"{len(transitions)} turns exceed the budget.")
    for index, (observation, reward, terminated, truncated, info) in enumerate(transitions):
        last = index == len(transitions) - 1
        _demand(isinstance(observation, str), f"Observation {observation!r} is no str.")
        _demand(isinstance(reward, float) and np.isfinite(reward), f"Reward {reward!r}.")
        _demand((terminated + truncated) == last, "Not exactly one of terminated and truncated.")
        _demand(("verdict" in info) == last, "The verdict comes at the end, and only there.")
    _raises(gym.error.ResetNeeded, lambda: env.step(""), "a step after the end")
    _raises(gym.error.InvalidAction, lambda: _fresh(env).step(3), "an action that is no str")


@_check
def reset_forgets(env: gym.Env[str, str]) -> None:
    """An episode after another one equals the same episode on its own."""
    first = env.reset(seed=7)
    _play(env, itertools.islice(_sampled(env), 3))
    _demand(env.reset(seed=7) == first, "Something of the last episode survived reset().")


@_check
def info_is_json(env: gym.Env[str, str]) -> None:
    """Everything in `info` can be written as JSON, and never holds the reference by name."""
    _, info = env.reset(seed=3)
    infos = [info, *(t[4] for t in _play(env, itertools.islice(_sampled(env), 4)))]
    for one in infos:
        try:
            json.dumps(one, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConformanceError(f"info is not JSON: {error}") from error
        _demand("reference" not in one, "info holds the reference answer.")


@_check
def hostile_actions_are_observations(env: gym.Env[str, str]) -> None:
    """Nonsense is answered with text; nothing raises and nothing is paid."""
    for action in HOSTILE_ACTIONS:
        env.reset(seed=4)
        try:
            observation, reward = env.step(action)[:2]
        except Exception as error:
            raise ConformanceError(f"Action {action[:40]!r} raised {error!r}.") from error
        _demand(isinstance(observation, str), f"Action {action[:40]!r} gave {observation!r}.")
        _demand(float(reward) <= 0, f"Action {action[:40]!r} was paid {reward}.")


@_check
def forks_share_the_future(env: gym.Env[str, str]) -> None:
    """Twin, snapshot and original give the same answers, and do not disturb one another."""
    env.reset(seed=6, options={"task": 0})
    inner = _text_env(env)
    actions = list(itertools.islice(_sampled(env), 3))
    inner.step(actions[0])
    if inner._over:
        env.reset(seed=6, options={"task": 0})
        actions = actions[:1] * 3
    snapshot, twin = inner.snapshot(), inner.fork()
    futures = [_play(inner, actions[1:]), _play(twin, actions[1:])]
    inner.restore(snapshot)
    futures.append(_play(inner, actions[1:]))
    draws = [e.np_random.random() for e in (inner, twin)]
    _demand(futures[0] == futures[1] == futures[2], "A fork's future differs from the original's.")
    _demand(draws[0] == draws[1], "A fork's random generator differs from the original's.")


@_check
def oracle_scores_one(env: gym.Env[str, str], tasks: int = 3) -> None:
    """The oracle's actions, taken one per step, earn a verdict of score 1."""
    inner = _text_env(env)
    for index in range(min(tasks, inner.num_tasks or tasks)):
        env.reset(seed=index, options={"task": index})
        transitions = _play(env, inner.oracle())
        verdict = transitions[-1][4].get("verdict") if transitions else None
        _demand(verdict is not None, f"The oracle does not finish task {index}.")
        _demand(verdict["score"] == 1, f"The oracle got {verdict} on task {index}.")  # type: ignore[index]


@_check
def cheats_score_zero(env: gym.Env[str, str], tasks: int = 3) -> None:
    """No reward hack earns anything, in reward or verdict."""
    inner = _text_env(env)
    for index in range(min(tasks, inner.num_tasks or tasks)):
        env.reset(seed=index, options={"task": index})
        for name in inner.cheats():
            env.reset(seed=index, options={"task": index})
            transitions = _play(env, inner.cheats()[name])
            paid = sum(t[1] for t in transitions)
            verdict = transitions[-1][4].get("verdict") or {"score": 0.0}
            _demand(
                paid <= 0 and verdict["score"] == 0,
                f"The cheat {name!r} was paid {paid} with {verdict} on task {index}.",
            )


def _global_states() -> tuple[Any, Any]:
    name, keys, *rest = np.random.get_state()
    # As a list: an array's text leaves its middle out.
    return random.getstate(), (name, list(keys), *rest)


def _sampled(env: gym.Env[str, str]) -> Iterable[str]:
    env.action_space.seed(0)
    while True:
        yield env.action_space.sample()


def _fresh(env: gym.Env[str, str]) -> Any:
    env.reset(seed=2)
    return env.unwrapped  # past wrappers, which have checks of their own


def _raises(kind: type[Exception], call: Callable[[], object], what: str) -> None:
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise ConformanceError(f"{what} raised {error!r}, not {kind.__name__}.") from error
    raise ConformanceError(f"{what} raised nothing; {kind.__name__} is expected.")
