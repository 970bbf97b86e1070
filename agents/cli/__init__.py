"""The command line: `turnwise list | play | eval | train | check`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from turnwise.agents.cli.errors import UsageError

VERBS = {
    "list": ("listing", "environments, credit functions, models and retrievers by name"),
    "play": ("playing", "act in an environment yourself"),
    "eval": ("evaluating", "how often a model solves tasks, with intervals"),
    "train": ("training", "train a model, watch it learn, get a report"),
    "check": ("checking", "does an environment keep the contract?"),
}
"""Verb to the module that has its `add_arguments` and `run`, and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `turnwise`; None takes them from the command line.

    Returns:
        The exit code: 0, 1 where the command's answer is no, 2 where it was called wrongly, 130
        where it was interrupted.
    """
    # Modules beside the user: what `--import my_envs` and `my_envs:ns/Name-v0` name.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except UsageError as error:
        print(f"turnwise {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"turnwise {arguments.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone, as in `turnwise list | head -1`; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turnwise",
        description="Gymnasium environments for LLM agents, with credit for every turn.",
    )
    parser.add_argument("--version", action="version", version=f"turnwise {_version()}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, purpose) in VERBS.items():
        sub = verbs.add_parser(verb, help=purpose, description=purpose[0].upper() + purpose[1:])
        home = import_module(f"turnwise.agents.cli.{module}")
        home.add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="print exactly one JSON document on stdout"
        )
        sub.set_defaults(run=home.run)
    return parser


def _version() -> str:
    import turnwise

    return turnwise.__version__
