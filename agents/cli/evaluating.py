"""`turnwise eval`: how often a model solves tasks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnwise.agents.cli.environment import (
    add_env_arguments,
    factory,
    parse_assignments,
    resolve_id,
    with_split,
)
from turnwise.agents.cli.errors import UsageError, usage_errors

if TYPE_CHECKING:
    from turnwise.agents.evaluation import Evaluation

DEFAULT_TASKS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_env_arguments(parser)
    add = parser.add_argument
    add("--model", default="tiny", help='"tiny", a folder or a Hugging Face id (default: tiny)')
    add("--split", help="of the environment's tasks (default: heldout, where it has splits)")
    add("-n", "--tasks", type=int, help=f"tasks (default: {DEFAULT_TASKS}, or all there are)")
    add("-k", "--samples", type=int, default=1, help="episodes per task, for pass@k (default: 1)")
    add("--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    add("--max-new-tokens", type=int, default=64, help="of one turn (default: 64)")
    add("--seed", type=int, default=0, help="of the sampling (default: 0)")
    add("--concurrency", type=int, default=64, help="episodes in flight (default: 64)")
    add("--threads", type=int, help="of torch (default: torch's own)")
    add("--out", type=Path, metavar="FILE", help="write every episode, token by token, as JSONL")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    for flag, count in (("-k", arguments.samples), ("--concurrency", arguments.concurrency)):
        if count < 1:
            raise UsageError(f"{flag} must be at least 1, not {count}")
    env_id = resolve_id(arguments.env, arguments.imports)
    given = parse_assignments(arguments.env_args or (), "--env-arg")
    env_args, split = with_split(env_id, given, arguments.split or "heldout")
    if arguments.split is not None and split != arguments.split:
        raise UsageError(f"{env_id} takes no argument split: leave --split out.")
    make_env = factory(env_id, env_args)
    first = make_env()
    tasks = _task_count(arguments.tasks, getattr(first.unwrapped, "num_tasks", None))
    spare = [first]

    # Torch is imported only now: the mistakes above are told at once.
    from turnwise.agents.chat import Chat
    from turnwise.agents.engines.engine import Sampling
    from turnwise.agents.engines.transformers import TransformersEngine
    from turnwise.agents.evaluation import evaluate
    from turnwise.agents.models import load_model

    silence_transformers()
    with usage_errors():
        sampling = Sampling(arguments.max_new_tokens, arguments.temperature)
        set_threads(arguments.threads)
        model, tokenizer = load_model(arguments.model)
        chat = Chat(tokenizer)
        engine = TransformersEngine(model, tokenizer, max_batch=arguments.concurrency)
        if arguments.out is not None:
            arguments.out.touch()
    evaluation = evaluate(
        engine,
        chat,
        lambda: spare.pop() if spare else make_env(),
        tasks=tasks,
        samples=arguments.samples,
        sampling=sampling,
        seed=arguments.seed,
        concurrency=arguments.concurrency,
        keep_trajectories=arguments.out is not None,
    )
    if arguments.out is not None:
        write_episodes(arguments.out, evaluation, tokenizer)
    document = {
        "env": env_id,
        "model": arguments.model,
        "split": split,
        **evaluation.to_json(),
    }
    print(json.dumps(document) if arguments.json else as_text(document, evaluation))
    if not sum(evaluation.statuses.values()):
        print("turnwise eval: every episode failed; see the warnings above.", file=sys.stderr)
        return 1
    return 0


def as_text(document: dict[str, Any], evaluation: Evaluation) -> str:
    """The result for people."""
    split = f" ({document['split']})" if document["split"] else ""
    lines = [
        f"{document['model']} on {document['env']}{split}, {evaluation.tasks} tasks"
        + (f" x {evaluation.samples}" if evaluation.samples > 1 else ""),
        f"  success   {evaluation.success}   score {evaluation.score:.3f}",
    ]
    if evaluation.samples > 1:
        lines += [f"  pass@{k:<4} {estimate}" for k, estimate in evaluation.pass_at_k.items()]
    counts = ", ".join(f"{n} {status}" for status, n in evaluation.statuses.items())
    lines += [
        f"  episodes  {counts or 'none'}, {evaluation.failed} failed",
        f"  mean      {evaluation.turns:.2f} turns, {evaluation.tokens:.1f} tokens",
        f"  speed     {evaluation.tokens_per_s:.0f} tokens/s, {evaluation.seconds:.1f} s",
    ]
    return "\n".join(lines)


def write_episodes(path: Path, evaluation: Evaluation, tokenizer: Any) -> None:
    """One line for each episode, in the form that reports read."""
    from turnwise.agents.report import episode_record

    with path.open("w", encoding="utf-8") as file:
        for trajectory in evaluation.trajectories:
            record = episode_record(trajectory, None, tokenizer)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def silence_transformers() -> None:
    """No bars while a model loads: they would be all that a small one shows."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def set_threads(threads: int | None) -> None:
    """Torch's threads, where they are given."""
    if threads is not None:
        import torch

        if threads < 1:
            raise ValueError(f"--threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)


def _task_count(wanted: int | None, available: int | None) -> int:
    if wanted is None:
        return DEFAULT_TASKS if available is None else min(DEFAULT_TASKS, available)
    if wanted < 1:
        raise UsageError(f"-n must be at least 1, not {wanted}")
    if available is not None and wanted > available:
        raise UsageError(f"There are {available} tasks, not {wanted}: give -n {available}.")
    return wanted
