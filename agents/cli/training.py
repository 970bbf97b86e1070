"""`turnwise train`: train a model, watch it learn, get a report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from turnwise.agents.cli.environment import DEFAULT as DEFAULT_ENV
from turnwise.agents.cli.environment import (
    add_env_arguments,
    factory,
    parse_assignments,
    resolve_id,
    with_split,
)
from turnwise.agents.cli.errors import UsageError, usage_errors
from turnwise.agents.cli.evaluating import silence_transformers
from turnwise.agents.cli.interrupts import Interrupts
from turnwise.agents.cli.outcome import as_text, summarise_run, write_run_report
from turnwise.agents.cli.progress import Progress, make_progress
from turnwise.agents.cli.run_folder import RunFolder
from turnwise.agents.cli.settings import LR, SMALL_MODEL_LR, RunSettings
from turnwise.rewards.credit import CREDIT

if TYPE_CHECKING:
    from turnwise.agents.cli.training_run import TrainingRun

_FIELDS = tuple(f.name for f in dataclasses.fields(RunSettings))
_PACKAGES = ("turnwise", "ray", "torch", "transformers", "gymnasium", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments. Defaults are those of `RunSettings`."""
    add_env_arguments(parser, default=None)
    add = parser.add_argument
    add("--credit", help="credit function, see `turnwise list` (default: grpo)")
    add(
        "--credit-arg",
        dest="credit_args",
        metavar="KEY=VALUE",
        action="append",
        help="option of the credit function; repeatable",
    )
    add("--model", help='"tiny", a folder or a Hugging Face id (default: tiny)')
    add("--steps", type=int, help="iterations in all (default: 60)")
    add("--group-size", type=int, help="episodes that share a task (default: 8)")
    add("--groups", type=int, help="tasks of one iteration (default: 8)")
    add(
        "--lr",
        type=float,
        help=f"learning rate (default: {SMALL_MODEL_LR:g} for tiny, else {LR:g})",
    )
    add("--seed", type=int, help="of everything random (default: 0)")
    add("--max-new-tokens", type=int, help="of one turn (default: 64)")
    add("--temperature", type=float, help="of sampling (default: 1)")
    add("--num-env-runners", type=int, help="processes that play (default: 0, in this one)")
    add("--num-learners", type=int, help="processes that learn (default: 0, in this one)")
    add("--eval-every", type=int, help="iterations between evaluations (default: only at the ends)")
    add("--eval-tasks", type=int, help="held-out tasks of an evaluation; 0: none (default: 200)")
    add("--checkpoint-every", type=int, help="iterations between checkpoints (default: 10)")
    add("--threads", type=int, help="of torch, in every process")
    add("--name", help="of the run (default: environment, credit and seed)")
    add("--out", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    add("--overwrite", action="store_true", help="replace a run of the same name")
    add("--resume", type=Path, metavar="RUN", help="continue a run; only --steps may change")


def run(arguments: argparse.Namespace) -> int:
    """Train, and print what came of it."""
    # What libraries print must not get between the reader and the one document.
    with contextlib.redirect_stdout(sys.stderr):
        folder, settings = resumed(arguments) if arguments.resume else started(arguments)
        training = begin(folder, settings, overwrite=arguments.overwrite)
        progress = make_progress(settings.steps, sys.stderr)
        with progress, Interrupts(progress.note) as interrupts:
            try:
                learn(training, progress, interrupts)
                finished = training.iteration >= settings.steps
                progress.note("writing the model and the report ...")
                training.save_model()
            except KeyboardInterrupt:
                finished = False
            training.record_episodes()
            document = summarise_run(folder, settings, finished=finished)
            folder.write_summary(document)
            write_run_report(folder, settings, document)
        training.close()
    print(json.dumps(document) if arguments.json else as_text(document))
    return 0 if finished else 130


def started(arguments: argparse.Namespace) -> tuple[RunFolder, RunSettings]:
    """A new run; its folder is made once all that is quick to check has been checked."""
    settings = settings_of(arguments)
    with usage_errors():
        CREDIT[settings.credit]
    env_args, _ = with_split(settings.env, settings.env_args, "train")
    factory(settings.env, env_args)().close()
    folder = RunFolder(arguments.out / (arguments.name or settings.default_name))
    if not arguments.overwrite:
        folder.check_is_new()
    return folder, settings


def resumed(arguments: argparse.Namespace) -> tuple[RunFolder, RunSettings]:
    """The run to continue, for as many steps as are asked for."""
    fixed = [name for name in (*_FIELDS, "name") if getattr(arguments, name) is not None]
    fixed = [name for name in fixed if name != "steps"] + ["overwrite"] * arguments.overwrite
    if fixed:
        raise UsageError(
            f"A resumed run keeps its settings: leave out --{fixed[0].replace('_', '-')} "
            "(only --steps may be given), or start a new run."
        )
    folder = RunFolder.open(arguments.resume)
    with usage_errors():
        settings = RunSettings.from_json(folder.read_config()["settings"])
        resolve_id(settings.env, arguments.imports)
        if arguments.steps is not None:
            settings = dataclasses.replace(settings, steps=arguments.steps)
    return folder, settings


def settings_of(arguments: argparse.Namespace) -> RunSettings:
    """The settings that the command line asks for."""
    given = {name: getattr(arguments, name) for name in _FIELDS}
    given = {name: value for name, value in given.items() if value is not None}
    given["env"] = resolve_id(arguments.env or DEFAULT_ENV, arguments.imports)
    for name in ("env_args", "credit_args"):
        flag = f"--{name[:-1].replace('_', '-')}"
        given[name] = parse_assignments(given.get(name, ()), flag)
    given.setdefault("lr", SMALL_MODEL_LR if given.get("model", "tiny") == "tiny" else LR)
    with usage_errors():
        return RunSettings(**given)


def begin(folder: RunFolder, settings: RunSettings, *, overwrite: bool) -> TrainingRun:
    """Load the model, write the folder's config, start the algorithm."""
    print("loading torch, Ray and the model ...", file=sys.stderr, flush=True)
    from turnwise.agents.cli.training_run import TrainingRun, initial_policy

    silence_transformers()
    # RLlib warns of a class that it makes itself.
    logging.getLogger("ray._common.deprecation").setLevel(logging.ERROR)
    with usage_errors():
        policy = initial_policy(settings)
    if overwrite:
        folder.clear()
    folder.make()
    folder.write_config(
        {
            "settings": settings.to_json(),
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _PACKAGES},
            },
        }
    )
    return TrainingRun(settings, folder, policy)


def learn(training: TrainingRun, progress: Progress, interrupts: Interrupts) -> None:
    """Iterations with evaluations and checkpoints, until the last or until asked to stop."""
    from turnwise.agents.cli.training_run import Stopped

    settings, folder = training.settings, training.folder
    evaluated = {row["iteration"] for row in folder.rows(folder.evaluations_file)}
    spent: list[float] = []
    with contextlib.suppress(Stopped):
        while True:
            now = training.iteration
            ends = now in (0, settings.steps)
            regular = settings.eval_every and now % settings.eval_every == 0
            if settings.eval_tasks and (ends or regular) and now not in evaluated:
                found = training.evaluate(lambda: interrupts.asked)
                progress.note(f"evaluation at {now}: success {found.success}")
            if now >= settings.steps or interrupts.asked:
                break
            row = training.step()
            spent.append(row["seconds"])
            recent = spent[-20:]
            left = settings.steps - training.iteration
            progress.update(row, left * sum(recent) / len(recent))
            if training.iteration % settings.checkpoint_every == 0:
                training.checkpoint()
    if training.iteration:
        training.checkpoint()
