"""`turnwise list`: everything that has a name."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turnwise.agents.cli.environment import (
    add_import_argument,
    describe,
    first_line,
    import_modules,
)

MODELS = {
    "tiny": "the embedded model: learns to search in minutes on a CPU",
    "FOLDER": "any causal language model in Hugging Face format",
    "ORGANISATION/NAME": "the same from the Hugging Face hub",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_import_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the lists."""
    found = inventory(import_modules(arguments.imports))
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for kind, entries in found.items():
        width = max(map(len, entries), default=0)
        print(f"{kind.replace('_', ' ')}:")
        for name, purpose in entries.items():
            print(f"  {name:<{width}}  {purpose}".rstrip())
        print()
    return 0


def inventory(imported: dict[str, str]) -> dict[str, dict[str, str]]:
    """Kind to name to one line about it; `imported` has environment ids of other packages."""
    import gymnasium as gym

    import turnwise.envs  # noqa: F401  (registers the ids)
    from turnwise.envs.search.retrieval import RETRIEVERS
    from turnwise.rewards.credit import CREDIT

    ours = [env_id for env_id in gym.registry if env_id.startswith("turnwise/")]
    return {
        "environments": {env_id: describe(env_id) for env_id in sorted({*ours, *imported})},
        "credit_functions": {name: first_line(credit) for name, credit in CREDIT.items()},
        "models": MODELS,
        "retrievers": {name: _about(made) for name, made in RETRIEVERS.items()},
    }


def _about(entry: str | Callable[..., Any]) -> str:
    """What a retriever is; one named by a string is read and not imported, which takes long."""
    if not isinstance(entry, str):
        return first_line(entry)
    module, _, name = entry.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return f"{module} is not installed"
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
