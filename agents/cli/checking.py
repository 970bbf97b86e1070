"""`turnwise check`: does an environment keep Gymnasium's contract and Turnwise's?"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import gymnasium as gym

from turnwise.agents.cli.environment import (
    add_env_arguments,
    factory,
    parse_assignments,
    resolve_id,
)


class Result(NamedTuple):
    """One check; `error` is "" where it passed."""

    check: str
    error: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_env_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run every check, print each, and say whether all passed."""
    env_id = resolve_id(arguments.env, arguments.imports)
    make_env = factory(env_id, parse_assignments(arguments.env_args or (), "--env-arg"))
    results = []
    for result in results_of(make_env):
        results.append(result)
        if not arguments.json:
            mark = "FAIL" if result.error else "ok"
            print(f"{mark:<5}{result.check}" + (f": {result.error}" if result.error else ""))
            sys.stdout.flush()
    failed = sum(bool(r.error) for r in results)
    if arguments.json:
        checks = [{"check": r.check, "ok": not r.error, "error": r.error} for r in results]
        print(json.dumps({"env": env_id, "ok": not failed, "checks": checks}, ensure_ascii=False))
    else:
        print(f"{env_id}: {len(results) - failed} of {len(results)} checks passed")
    return 1 if failed else 0


def results_of(make_env: Callable[[], gym.Env[str, str]]) -> Iterator[Result]:
    """The checks in order, each on an environment of its own."""
    from turnwise.envs.conformance import CHECKS

    yield _result("gymnasium check_env", _gymnasium_check, make_env)
    for check in CHECKS:
        yield _result(check.__name__.replace("_", " "), check, make_env)


def _gymnasium_check(env: gym.Env[str, str]) -> None:
    """Gymnasium's own checker, whose warnings count as errors."""
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


def _result(
    name: str,
    check: Callable[[gym.Env[str, str]], None],
    make_env: Callable[[], gym.Env[str, str]],
) -> Result:
    env = make_env()
    try:
        check(env)
    # What an environment raises is the finding that is asked for, whatever it is.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Result(name, text if isinstance(error, AssertionError) else f"{error!r:.300}")
    finally:
        env.close()
    return Result(name, "")
