"""Making environments by id, with an error that lists the nearest ids."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

from turnwise.rewards.names import unknown_name

ENTRY_POINTS = {
    "turnwise/Search-v0": "turnwise.envs.search.search_env:SearchEnv",
}
"""Every id of this package, and the class behind it as a string: importing stays cheap."""


def register() -> None:
    """Register `ENTRY_POINTS` with Gymnasium; what is registered already stays."""
    for env_id, entry_point in ENTRY_POINTS.items():
        if env_id not in gym.registry:
            gym.register(id=env_id, entry_point=entry_point)


def check_id(env_id: str) -> str:
    """The id itself if Gymnasium knows it, after importing the module of `module:ns/Name-v0`.

    Raises:
        UnknownNameError: no such environment; the message lists the nearest ids.
        ModuleNotFoundError: no such module.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    if name not in gym.registry:
        raise unknown_name("environment", name, gym.registry)
    return env_id


def make(env_id: str, **kwargs: Any) -> gym.Env[str, str]:
    """`gymnasium.make`, with `check_id`'s error for an unknown id."""
    return gym.make(check_id(env_id), **kwargs)
