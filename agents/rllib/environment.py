"""Environments by Gymnasium id, class or Ray-registered name, and what tasks they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym
from ray.tune.registry import ENV_CREATOR, _global_registry

import turnwise.envs  # noqa: F401  (registers the ids)
from turnwise.envs.registry import check_id

TextEnvironment: TypeAlias = gym.Env[str, str]
EnvSpecifier: TypeAlias = str | type[gym.Env[Any, Any]]


def check_env_specifier(env: object) -> None:
    """Raise a ValueError that says what to type unless `env` names an environment."""
    if env is None:
        raise ValueError('No environment: call config.environment("turnwise/Search-v0").')
    if isinstance(env, type) or (
        isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env)
    ):
        return
    if not isinstance(env, str):
        raise ValueError(f"An environment is an id or a class, not {env!r}")
    try:
        check_id(env)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The environment id {env!r} imports a module that is not installed: {error}. "
            "Install it, or check the part before the colon."
        ) from error


def check_text_spaces(env: gym.Env[Any, Any]) -> None:
    """Raise a ValueError unless observations and actions are text."""
    for kind in ("observation", "action"):
        space = getattr(env, f"{kind}_space")
        if not isinstance(space.sample(), str):
            raise ValueError(
                f"{env.unwrapped} has {kind}s from {space}, but a language model reads and writes "
                "text. Wrap it so that both spaces are turnwise.envs.spaces.Unicode."
            )


def env_factory(env: EnvSpecifier, env_config: Mapping[str, Any]) -> Callable[[], TextEnvironment]:
    """A function that makes one environment.

    Args:
        env: a Gymnasium id ("turnwise/Search-v0", "module:namespace/Name-v0"), a class, or a name
            registered with Ray.
        env_config: keyword arguments for `gym.make` or the class; Ray's creators get the dict.
    """

    def make() -> TextEnvironment:
        made: TextEnvironment
        if isinstance(env, type):
            made = env(**env_config)
        elif _global_registry.contains(ENV_CREATOR, env):
            made = _global_registry.get(ENV_CREATOR, env)(dict(env_config))
        else:
            made = gym.make(env, disable_env_checker=True, **env_config)
        check_text_spaces(made)
        return made

    return make


@dataclass(frozen=True, slots=True)
class Tasks:
    """What an environment lets one choose at `reset`.

    Attributes:
        by_index: whether `options={"task": index}` picks a task; if not, the seed does.
        size: how many tasks there are; None is without end.
    """

    by_index: bool
    size: int | None

    @classmethod
    def of(cls, env: gym.Env[Any, Any]) -> Tasks:
        """An environment that has `num_tasks` takes a task's index; None there is without end."""
        if not hasattr(env.unwrapped, "num_tasks"):
            return cls(by_index=False, size=None)
        return cls(by_index=True, size=env.unwrapped.num_tasks)

    def options(self, task: int) -> dict[str, Any]:
        """For `env.reset`."""
        return {"task": task} if self.by_index else {}
