"""`turnwise play`: a person, or the oracle, acts in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import gymnasium as gym

from turnwise.agents.cli.environment import (
    add_env_arguments,
    factory,
    parse_assignments,
    resolve_id,
)
from turnwise.agents.cli.errors import UsageError, usage_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_env_arguments(parser)
    parser.add_argument("--task", type=int, help="which task (default: the seed draws one)")
    parser.add_argument("--seed", type=int, default=0, help="of the environment (default: 0)")
    parser.add_argument("--oracle", action="store_true", help="watch the environment solve itself")


def run(arguments: argparse.Namespace) -> int:
    """Play one episode."""
    env_id = resolve_id(arguments.env, arguments.imports)
    env = factory(env_id, parse_assignments(arguments.env_args or (), "--env-arg"))()
    screen = sys.stderr if arguments.json else sys.stdout
    options = {} if arguments.task is None else {"task": arguments.task}
    try:
        with usage_errors():
            observation, info = env.reset(seed=arguments.seed, options=options)
        if arguments.oracle:
            oracle = getattr(env.unwrapped, "oracle", None)
            if oracle is None:
                raise UsageError(f"{env_id} has no oracle: play it without --oracle.")
            actions = oracle()
        else:
            actions = typed_actions(sys.stdin, screen)
        show(f"{env_id}, task {info.get('task_id', '?')}", screen)
        show(observation, screen)
        episode = play(env, actions, screen, echo=arguments.oracle)
    finally:
        env.close()
    if arguments.json:
        document = {"env": env_id, "task_id": info.get("task_id"), "prompt": observation, **episode}
        print(json.dumps(document, ensure_ascii=False))
    return 0


def play(
    env: gym.Env[str, str], actions: Iterator[str], screen: TextIO, *, echo: bool
) -> dict[str, Any]:
    """Take the actions until the episode or the actions end; what happened, as JSON."""
    turns: list[dict[str, Any]] = []
    verdict, over = None, False
    for action in actions:
        if echo:
            show(f"> {action}", screen)
        observation, reward, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        turns.append({"action": action, "observation": observation, "reward": float(reward)})
        if observation:
            show(observation, screen)
        show(f"[turn {len(turns)}, reward {reward:g}]", screen)
        if over:
            verdict = info.get("verdict")
            break
    total = sum(turn["reward"] for turn in turns)
    if verdict is not None:
        how = f"{verdict['status']}, score {verdict['score']:g}, return {total:g}"
        show(f"The episode is over: {how}.", screen)
    elif over:
        show(f"The episode is over: return {total:g}.", screen)
    else:
        show("You left before the episode was over.", screen)
    return {"turns": turns, "return": total, "over": over, "verdict": verdict}


def typed_actions(source: TextIO, screen: TextIO) -> Iterator[str]:
    """Actions from a terminal or a pipe: lines up to an empty one, or up to the end."""
    show("Type an action and end it with an empty line; Ctrl-D leaves.", screen)
    lines: list[str] = []
    while True:
        if not lines:
            print("> ", end="", file=screen, flush=True)
        line = source.readline()
        text = line.rstrip("\r\n")
        if text:
            lines.append(text)
        elif lines:
            yield "\n".join(lines)
            lines = []
        elif line:
            yield ""  # an empty line on its own is an empty action
        if not line:
            print(file=screen)
            return


def show(text: str, screen: TextIO) -> None:
    """Print, with control characters of an environment's text made harmless."""
    keep = "\n\t"
    clean = "".join(
        c if c in keep or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    print(clean, file=screen, flush=True)
