"""RunSettings: everything that decides a training run, as it is stored with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SMALL_MODEL_LR, LR = 1e-3, 1e-6
"""Learning rates of the embedded model and of every other."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """A training run.

    Attributes:
        env: environment id.
        env_args: its keyword arguments, for training; evaluation replaces `split`.
        credit: name of the credit function.
        credit_args: its options.
        model: "tiny", a folder or a hub id.
        steps: iterations in all.
        group_size: episodes that share a task.
        groups: tasks of one iteration.
        lr: learning rate.
        seed: of everything random.
        max_new_tokens: of one turn.
        temperature: of sampling.
        num_env_runners: processes that play; 0 plays in the main one.
        num_learners: processes that learn; 0 learns in the main one.
        eval_every: iterations between evaluations; 0 evaluates before and after only.
        eval_tasks: of one evaluation; 0 never evaluates.
        checkpoint_every: iterations between checkpoints.
        threads: of torch in every process; None leaves them.
    """

    env: str
    env_args: Mapping[str, Any] = field(default_factory=dict)
    credit: str = "grpo"
    credit_args: Mapping[str, Any] = field(default_factory=dict)
    model: str = "tiny"
    steps: int = 60
    group_size: int = 8
    groups: int = 8
    lr: float = LR
    seed: int = 0
    max_new_tokens: int = 64
    temperature: float = 1.0
    num_env_runners: int = 0
    num_learners: int = 0
    eval_every: int = 0
    eval_tasks: int = 200
    checkpoint_every: int = 10
    threads: int | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError that names the flag of a value out of range."""
        for name in ("steps", "group_size", "groups", "checkpoint_every", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("eval_every", "eval_tasks", "num_env_runners", "num_learners"):
            if getattr(self, name) < 0:
                raise ValueError(f"{_flag(name)} must not be negative, is {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, not {self.threads}")
        if self.lr < 0:
            raise ValueError(f"--lr must not be negative, is {self.lr}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSettings:
        """The inverse of `to_json`. ValueError for a key this version does not know."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"The run was made by another version: it has {', '.join(unknown)}.")
        return cls(**data)

    @property
    def default_name(self) -> str:
        """A name for the run: environment, credit and seed."""
        short = self.env.rpartition("/")[2].rpartition("-v")[0].lower()
        return f"{short}-{self.credit}-s{self.seed}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
