"""The environment a command names: `--env`, `--env-arg key=value`, `--import`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from turnwise.agents.cli.errors import UsageError, usage_errors
from turnwise.envs.registry import check_id, make
from turnwise.rewards.names import unknown_name

DEFAULT = "turnwise/Search-v0"


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """`--import MODULE`."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="import a module that registers environments or plug-ins; repeatable",
    )


def add_env_arguments(parser: argparse.ArgumentParser, *, default: str | None = DEFAULT) -> None:
    """`--env`, `--env-arg` and `--import`."""
    parser.add_argument(
        "--env",
        default=default,
        metavar="ID",
        help=f"environment id, or module:namespace/Name-v0 (default: {DEFAULT})",
    )
    parser.add_argument(
        "--env-arg",
        dest="env_args",
        metavar="KEY=VALUE",
        action="append",
        help="keyword argument of the environment, read as JSON where it is; repeatable",
    )
    add_import_argument(parser)


def parse_assignments(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """`["hops=[1,2]", "split=train"]` to `{"hops": [1, 2], "split": "train"}`."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{flag} takes key=value, not {pair!r}.")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return values


def import_modules(modules: Sequence[str]) -> dict[str, str]:
    """Import modules; environment ids that each has registered, id to module."""
    registered: dict[str, str] = {}
    for module in modules:
        before = set(gym.registry)
        with usage_errors():
            importlib.import_module(module)
        registered.update(dict.fromkeys(set(gym.registry) - before, module))
    return registered


def resolve_id(env_id: str, imports: Sequence[str]) -> str:
    """The id, known to Gymnasium; `module:` comes before one that an imported module registered.

    With the module's name in it, the id means the same in a worker process.
    """
    registered = import_modules(imports)
    with usage_errors():
        check_id(env_id)
    module = registered.get(env_id)
    if module is None and ":" not in env_id and not env_id.startswith("turnwise/") and imports:
        module = imports[-1]  # imported by something else before; any of them brings it
    return f"{module}:{env_id}" if module else env_id


def parameters(env_id: str) -> list[str] | None:
    """Names of an environment's keyword arguments; None where it takes any."""
    entry_point = _creator(env_id)
    if entry_point is None:
        return None
    signature = inspect.signature(entry_point).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature):
        return None
    return [p.name for p in signature]


def factory(env_id: str, env_args: Mapping[str, Any]) -> Callable[[], gym.Env[str, str]]:
    """A function that makes the environment; a wrong argument is said now.

    Raises:
        UsageError: an argument that the environment does not take, or a value it refuses.
    """
    known = parameters(env_id)
    for name in env_args:
        if known is not None and name not in known:
            raise UsageError(str(unknown_name(f"argument of {env_id},", name, known)))
    with usage_errors():
        spare = [make(env_id, disable_env_checker=True, **env_args)]

    def make_env() -> gym.Env[str, str]:
        return spare.pop() if spare else make(env_id, disable_env_checker=True, **env_args)

    return make_env


def with_split(
    env_id: str, env_args: Mapping[str, Any], split: str | None
) -> tuple[dict[str, Any], str | None]:
    """The arguments with `split`, where the environment takes one, and the split that it is.

    Args:
        env_id: which environment.
        env_args: what the user gave; a `split` in there wins.
        split: what to add; None adds nothing.
    """
    args = dict(env_args)
    known = parameters(env_id)
    if split is not None and known is not None and "split" in known:
        args.setdefault("split", split)
    return args, args.get("split")


def describe(env_id: str) -> str:
    """The first line of the environment's docstring."""
    try:
        return first_line(_creator(env_id))
    except ImportError as error:
        return f"cannot be imported here: {error}"


def _creator(env_id: str) -> Callable[..., Any] | None:
    """What makes the environment: its class, mostly."""
    entry_point = gym.registry[env_id.rpartition(":")[2]].entry_point
    if isinstance(entry_point, str):
        return load_env_creator(entry_point)
    return entry_point


def first_line(thing: object) -> str:
    """The first line of a docstring, "" without one."""
    return "" if thing is None else (inspect.getdoc(thing) or "").partition("\n")[0]
