"""Which task every group of an iteration plays: a pure function of seed and iteration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from turnwise.envs.text_env import UNLIMITED

SEED_BITS = 62
"""Seeds are non-negative and fit a signed 64-bit integer, as torch and NumPy want them."""

TASKS_PER_SEED = 1 << 20
"""Where tasks have no end, runs of different seeds start this far from one another."""


@dataclass(frozen=True, slots=True)
class Group:
    """Episodes that share a task and are compared with one another.

    Attributes:
        index: 0, 1, ... within its iteration.
        task: which task, for `env.reset(options={"task": task})`.
        env_seed: for `env.reset(seed=env_seed)`, the same for every member; it stands for the task
            where the environment has none.
        seeds: one sampling seed per member.
    """

    index: int
    task: int
    env_seed: int
    seeds: tuple[int, ...]


def stable_hash(*parts: int | str) -> int:
    """An integer in [0, 2**62), a function of the parts alone, in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def task_index(count: int, num_tasks: int | None, seed: int) -> int:
    """The `count`-th task of a run.

    Args:
        count: how many groups came before it in the run.
        num_tasks: how many tasks there are. None is without end: no task comes twice.
        seed: of the run. A finite set is gone through in epochs, each in an order of its own.
    """
    if num_tasks is None:
        return (seed * TASKS_PER_SEED + count) % UNLIMITED
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1 or None, not {num_tasks}")
    epoch, position = divmod(count, num_tasks)
    order = np.random.default_rng(stable_hash("epoch", seed, epoch)).permutation(num_tasks)
    return int(order[position])


def training_groups(
    *, seed: int, iteration: int, groups: int, group_size: int, num_tasks: int | None
) -> list[Group]:
    """The groups of one training iteration."""
    tasks = [task_index(iteration * groups + g, num_tasks, seed) for g in range(groups)]
    return [
        Group(
            index=g,
            task=task,
            env_seed=env_seed("training", task),
            seeds=tuple(stable_hash("sample", seed, iteration, g, m) for m in range(group_size)),
        )
        for g, task in enumerate(tasks)
    ]


def evaluation_groups(indices: Iterable[int], *, seed: int, num_tasks: int | None) -> list[Group]:
    """One episode for each index: task `index` with a seed that no iteration changes.

    Beyond a finite set of tasks the indices start again at task 0, with other seeds.
    """
    return [
        Group(
            index=i,
            task=i if num_tasks is None else i % num_tasks,
            env_seed=env_seed("evaluation", i),
            seeds=(stable_hash("evaluation", seed, i),),
        )
        for i in indices
    ]


def env_seed(split: str, task: int) -> int:
    """The seed of a task; 31 bits, which every environment's seeding takes."""
    return stable_hash("env", split, task) >> (SEED_BITS - 31)


def assign_groups(groups: Sequence[Group], runners: Sequence[int]) -> dict[int, list[Group]]:
    """Deal groups out to runners in turn. A group is never split: its members are compared."""
    if not runners:
        raise ValueError("there is no runner to give the groups to")
    return {runner: list(groups[i :: len(runners)]) for i, runner in enumerate(runners)}
